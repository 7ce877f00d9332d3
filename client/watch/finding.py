"""What can bound the throughput of a pipeline, and what is said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from client.watch import advice
from client.watch.loads import DeviceLoad

BUSY = 0.85
"""Above it a device or a link counts as taken: what is missing to 1.0 is the jitter of batches."""


class BoundKind(StrEnum):
    """What it is that bounds the throughput."""

    NO_CONNECTION = "no_connection"
    NO_PLAN = "no_plan"
    STAGE_MISSING = "stage_missing"
    NOT_FED = "not_fed"
    STAGE = "stage"
    THROTTLED = "throttled"
    MEMORY = "memory"
    CLIENT = "client"
    WINDOW = "window"
    LINK = "link"
    BROKER = "broker"
    ON_THE_WAY = "on_the_way"


@dataclass(frozen=True, slots=True)
class Bound:
    """``what`` says it in one sentence with figures; ``helps`` names one or two remedies, if any.

    ``stage_index`` and ``devices``: what it is about, where it is about a stage or devices.
    """

    kind: BoundKind
    what: str
    helps: tuple[str, ...] = ()
    stage_index: int | None = None
    devices: tuple[str, ...] = ()


def held_back(loads: Sequence[DeviceLoad], index: int | None, rate: str) -> Bound | None:
    """The first of these devices that its power, its heat or its memory holds back."""
    for load in loads:
        where = load.device if index is None else f"Stage {index} is the slowest, and {load.device}"
        if load.throttled:
            return Bound(
                BoundKind.THROTTLED,
                f"{where} is slowed down by its board: {advice.flags(load.throttled)}. {rate}",
                advice.for_throttled(load.throttled),
                load.stage_index,
                (load.device,),
            )
        if load.is_short_of_memory:
            return Bound(
                BoundKind.MEMORY,
                f"{where} is short of memory: {load.memory_available_bytes / 1e6:,.0f} MB are "
                f"left. {rate}",
                advice.for_memory(),
                load.stage_index,
                (load.device,),
            )
    return None
