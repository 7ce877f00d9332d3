"""The unit of work and of accounting, and the two ways in which it can end."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from contract.activation import BatchId, Hop
from contract.tensor_spec import Tensors


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes in: tensors with a leading batch dimension, and whose they are.

    ``names`` has one entry per image. So has ``labels``, class indices where they are known; it may
    be empty when none is. ``positions``: which items of a source it is made of, half-open; None
    where there is no source to read it from again.
    """

    tensors: Tensors
    names: tuple[str, ...]
    labels: tuple[int | None, ...] = ()
    positions: tuple[int, int] | None = None

    @property
    def images(self) -> int:
        """How many images the batch holds."""
        return len(self.names)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A batch that came back. ``hops`` is what each stage did, in that device's clock; ``route``
    names the device of every stage.
    """

    batch_id: BatchId
    batch: Batch
    outputs: Tensors
    latency_ms: float
    attempt: int
    hops: tuple[Hop, ...] = ()
    route: tuple[str, ...] = ()


class DeathReason(StrEnum):
    """Why a batch will have no result."""

    POISON = "poison"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class DeadBatch:
    """A batch that was given up, and why."""

    batch_id: BatchId
    batch: Batch
    reason: DeathReason
    detail: str


Ended = BatchResult | DeadBatch


class NobodyThere(NamedTuple):
    """The broker found no subscriber for an attempt."""

    batch_id: BatchId
    attempt: int
