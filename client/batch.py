"""The unit of work and of accounting, the two ways in which it can end, and what comes before."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from contract.activation import BatchId, Hop
from contract.decoder import Finish
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

    ``queued_us``, ``sent_us`` and ``received_us`` are of the client's Unix clock, see
    :class:`contract.trace.BatchTrace`; all are 0 where this process has not sent the attempt that
    was answered. ``bytes_in`` and ``bytes_out`` are the sizes of its first and last message.
    """

    batch_id: BatchId
    batch: Batch
    outputs: Tensors
    latency_ms: float
    attempt: int
    hops: tuple[Hop, ...] = ()
    route: tuple[str, ...] = ()
    queued_us: int = 0
    sent_us: int = 0
    received_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


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


class Tokens(NamedTuple):
    """One token more of the sequences of a language model's batch, one row each.

    ``token_ids`` holds None for a row that had ended before; ``finish`` says why a row ends with
    this token, if it does. ``attempt``: which one brought it. ``hops``: what each stage did for it,
    in that device's clock; empty where it had to wait for another token.
    """

    batch_id: BatchId
    batch: Batch
    attempt: int
    position: int
    token_ids: tuple[int | None, ...]
    finish: tuple[Finish, ...]
    hops: tuple[Hop, ...] = ()


class Stop(NamedTuple):
    """Nobody wants more tokens of these rows of a batch; of all for None."""

    batch: Batch
    rows: tuple[int, ...] | None = None


class NothingYet:
    """What a source says that has no batch now and may have one later."""


NOTHING_YET = NothingYet()


class NobodyThere(NamedTuple):
    """The broker found no subscriber for an attempt."""

    batch_id: BatchId
    attempt: int
