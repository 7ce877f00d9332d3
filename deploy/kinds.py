"""What deployment knows of each kind of device: its machine, what it can spare. Pure data."""

from typing import NamedTuple

from contract.kind import Kind


class KindFacts(NamedTuple):
    """``machine``: what `uname -m` prints there. Memory limits as Compose reads them.

    The limits fit the smallest board of the kind, beside the operating system: 512 MB on a Zero
    2 W, 1 GB on a 3B+, a 4 and a 5. A board with more can be given more in fleet.yaml.
    """

    machine: str
    stage_memory: str
    broker_memory: str


KINDS = {
    Kind.RASPBERRY_PI_ZERO_2_W: KindFacts("aarch64", "256m", "96m"),
    Kind.RASPBERRY_PI_3B_PLUS: KindFacts("aarch64", "512m", "192m"),
    Kind.RASPBERRY_PI_4: KindFacts("aarch64", "640m", "192m"),
    Kind.RASPBERRY_PI_5: KindFacts("aarch64", "640m", "192m"),
    Kind.OTHER_ARM64: KindFacts("aarch64", "512m", "192m"),
    Kind.OTHER_AMD64: KindFacts("x86_64", "1g", "256m"),
}
