"""Devices as a file describes them: what planning may go by where nothing was measured.

`deploy` writes it from a device file, `planner` reads it. None means that the file does not say:
the planner then takes what is known of the device's kind.
"""

from pydantic import Field

from contract.frozen import FrozenModel
from contract.kind import Kind


class DescribedDevice(FrozenModel):
    """One device.

    ``memory_bytes`` is what its stage's process may use, None for no limit. ``speed`` multiplies
    the speed that its kind has by default. ``cores`` is how many of the board's cores its stage
    uses, None for all. ``up_bytes_per_s`` leads from the device to the broker, ``latency_ms`` is
    one way. ``profile`` is the path of a file that `shardline profile` wrote: the device was
    measured, and neither ``speed`` nor ``cores`` is given.
    """

    name: str
    kind: Kind
    memory_bytes: int | None = Field(default=None, gt=0)
    speed: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    cores: int | None = Field(default=None, ge=1)
    up_bytes_per_s: float | None = Field(default=None, gt=0)
    down_bytes_per_s: float | None = Field(default=None, gt=0)
    latency_ms: float | None = Field(default=None, ge=0)
    profile: str | None = None


class DescribedFleet(FrozenModel):
    """Devices around one broker.

    ``broker_bytes_per_s`` is the slower direction of the broker's network card; without it, that of
    ``broker_kind``, the machine which the broker runs on, if that is known.
    """

    devices: tuple[DescribedDevice, ...] = Field(min_length=1)
    broker_bytes_per_s: float | None = Field(default=None, gt=0)
    broker_kind: Kind | None = None
