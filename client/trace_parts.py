"""Where a batch's time went: its parts in order, by the client's clock. Pure.

The parts of a batch follow each other without a gap, so they sum to its latency exactly. Those on
one device are differences of that device's own clock; transfers lie between two clocks, known to
what :mod:`client.trace_clocks` knows of them.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from client.trace_clocks import Clock, align, by_client, is_whole, known_clocks
from contract.trace import BatchTrace, ClockOffset


class PartKind(StrEnum):
    """What a batch does in a part of its time.

    ``queue``: at the client, being encoded or waiting to be sent again. ``transfer``: encoding at
    the sender, the broker, and what the receiver takes to hear of it. ``wait``: at the device,
    behind other batches and being decoded. ``publish``: making the output a message.
    """

    QUEUE = "queue"
    TRANSFER = "transfer"
    WAIT = "wait"
    COMPUTE = "compute"
    PUBLISH = "publish"


@dataclass(frozen=True, slots=True)
class Part:
    """From ``begin_us`` to ``end_us`` by the client's Unix clock.

    ``device``: where it is spent, for a transfer who receives; None stands for the client.
    ``stage_index``: of that device; None at the client. ``uncertainty_us``: how wrong its length
    may be.
    """

    kind: PartKind
    stage_index: int | None
    device: str | None
    begin_us: int
    end_us: int
    uncertainty_us: int = 0

    @property
    def length_us(self) -> int:
        """How long it took."""
        return self.end_us - self.begin_us


@dataclass(frozen=True, slots=True)
class TimedBatch:
    """A batch and its parts in order."""

    trace: BatchTrace
    parts: tuple[Part, ...]

    @property
    def latency_us(self) -> int:
        """From submission to result."""
        return self.trace.received_us - self.trace.queued_us


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Batches in the order in which they were submitted, and the clocks that they were timed by.

    ``left_out``: how many have no place in one time, a clock having been set meanwhile, or do not
    tell of every stage.
    """

    batches: tuple[TimedBatch, ...]
    clocks: tuple[Clock, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One part over all batches. ``share`` is of all batches' time; means add up, medians do not.

    ``devices`` by name, several where a stage has replicas.
    """

    kind: PartKind
    stage_index: int | None
    devices: tuple[str, ...]
    median_us: float
    mean_us: float
    share: float
    uncertainty_us: int


def decompose(traces: Iterable[BatchTrace], told: Sequence[ClockOffset]) -> Decomposition:
    """Time every batch by the client's clock.

    Args:
        traces: of one client.
        told: the offsets that this client has measured.
    """
    found = list(traces)
    whole = [trace for trace in found if is_whole(trace)]
    clocks = known_clocks(whole, told)
    whole = [trace for trace in whole if all(device in clocks for device in trace.route)]
    aligned, kept = align(whole, clocks)
    kept.sort(key=lambda trace: (trace.queued_us, trace.seq))
    used = {device for trace in kept for device in trace.route}
    return Decomposition(
        tuple(TimedBatch(trace, parts_of(trace, aligned)) for trace in kept),
        tuple(clock for name, clock in sorted(aligned.items()) if name in used),
        len(found) - len(kept),
    )


def parts_of(trace: BatchTrace, clocks: dict[str, Clock]) -> tuple[Part, ...]:
    """The parts of one batch; ``clocks`` has every device of its route."""
    parts = [Part(PartKind.QUEUE, None, None, trace.queued_us, trace.sent_us)]
    before_us, before_uncertain_us = trace.sent_us, 0
    inside = (PartKind.WAIT, PartKind.COMPUTE, PartKind.PUBLISH)
    for index, (device, hop) in enumerate(zip(trace.route, trace.hops, strict=True)):
        clock = clocks[device]
        here = by_client(hop, clock)
        uncertain_us = before_uncertain_us + clock.uncertainty_us
        parts.append(
            Part(PartKind.TRANSFER, index, device, before_us, here.received_us, uncertain_us)
        )
        for kind, (begin_us, end_us) in zip(inside, pairwise(here), strict=True):
            parts.append(Part(kind, index, device, begin_us, end_us))
        before_us, before_uncertain_us = here.sent_us, clock.uncertainty_us
    parts.append(
        Part(PartKind.TRANSFER, None, None, before_us, trace.received_us, before_uncertain_us)
    )
    return tuple(parts)


def summarise(batches: Sequence[TimedBatch]) -> tuple[PartSummary, ...]:
    """One row for each part, in order. Batches of another number of stages do not count."""
    if not batches:
        return ()
    length = len(batches[-1].parts)
    alike = [batch for batch in batches if len(batch.parts) == length]
    whole_us = max(1, sum(batch.latency_us for batch in alike))
    rows = []
    for column in zip(*(batch.parts for batch in alike), strict=True):
        lengths = [part.length_us for part in column]
        devices = {part.device for part in column if part.device is not None}
        rows.append(
            PartSummary(
                column[0].kind,
                column[0].stage_index,
                tuple(sorted(devices)),
                statistics.median(lengths),
                statistics.fmean(lengths),
                sum(lengths) / whole_us,
                max(part.uncertainty_us for part in column),
            )
        )
    return tuple(rows)
