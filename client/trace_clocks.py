"""One clock for a batch's times: what each device's differs by, so that no batch arrives before it
was sent. Pure.

What the client measured is known to half of a round trip. Batches tell more: none can arrive before
it left. Where an offset lets one do so, it is moved, for all batches alike and by no more than it
may be wrong; what one transfer loses, the other one of the same device gains.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from client.clock_filter import sample
from contract.activation import Hop
from contract.trace import BatchTrace, ClockOffset


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a device's clock is ahead of the client's, in microseconds.

    ``uncertainty_us``: what ``offset_us`` was wrong by at most when it was measured; ``moved_us``
    is how far batches have moved it since. ``is_measured``: the device was asked; else it is only
    known from the batches that went through it.
    """

    device: str
    offset_us: int
    uncertainty_us: int
    is_measured: bool = True
    moved_us: int = 0


def is_whole(trace: BatchTrace) -> bool:
    """Whether a trace tells of every stage, and each clock of it went forward."""
    if not trace.hops or len(trace.hops) != len(trace.route):
        return False
    if len(set(trace.route)) != len(trace.route):
        return False
    if not trace.queued_us <= trace.sent_us <= trace.received_us:
        return False
    return all(tuple(hop) == tuple(sorted(hop)) for hop in trace.hops)


def known_clocks(traces: Sequence[BatchTrace], told: Sequence[ClockOffset]) -> dict[str, Clock]:
    """The clock of every device of ``traces``: as measured, or as the batches let one think.

    A batch on its way is a question for the time, too, with a long round trip: the device has read
    it and answered, and the rest of its time it was elsewhere.
    """
    clocks = {
        offset.device: Clock(offset.device, offset.offset_us, (offset.round_trip_us + 1) // 2)
        for offset in told
    }
    for trace in traces:
        for device, hop in zip(trace.route, trace.hops, strict=True):
            before = clocks.get(device)
            if before is not None and before.is_measured:
                continue
            found = sample(trace.sent_us, hop.received_us, hop.sent_us, trace.received_us)
            if found is None:
                continue
            uncertainty_us = (found.round_trip_us + 1) // 2
            if before is None or uncertainty_us < before.uncertainty_us:
                clocks[device] = Clock(device, found.offset_us, uncertainty_us, is_measured=False)
    return clocks


def by_client(hop: Hop, clock: Clock) -> Hop:
    """A device's four times by the client's clock."""
    return Hop(*(time_us - clock.offset_us for time_us in hop))


def align(
    traces: Sequence[BatchTrace], clocks: dict[str, Clock]
) -> tuple[dict[str, Clock], list[BatchTrace]]:
    """Move clocks so that no batch arrives before it was sent.

    Args:
        traces: of whole traces, see :func:`is_whole`, whose devices are all in ``clocks``.
        clocks: as :func:`known_clocks` has them.

    Returns:
        The clocks, and the traces that they are right for. What is left out cannot be, within the
        uncertainty: a clock was set while the batch was on its way, or somebody lies.
    """
    moved, kept = dict(clocks), list(traces)
    while kept:
        moved = _moved(kept, clocks)
        bad = [trace for trace in kept if _shortest_transfer_us(trace, moved) < 0]
        if not bad:
            return moved, kept
        # The worst alone, since it may have moved clocks for others: many only where many are bad.
        bad.sort(key=lambda trace: _shortest_transfer_us(trace, clocks))
        for trace in bad[: max(1, len(bad) // 8)]:
            kept.remove(trace)
    return dict(clocks), []


def _moved(traces: Sequence[BatchTrace], clocks: dict[str, Clock]) -> dict[str, Clock]:
    """Push devices later, from the client's sending on; then earlier, from its receiving back."""
    moved = dict(clocks)
    stages = max(len(trace.route) for trace in traces)
    for step, order in ((-1, range(stages)), (1, range(stages - 1, -1, -1))):
        for index in order:
            needs: dict[str, int] = {}
            for trace in traces:
                if index < len(trace.route):
                    arrives, leaves = _gaps(trace, index, moved)
                    gap = arrives if step < 0 else leaves
                    device = trace.route[index]
                    needs[device] = max(needs.get(device, 0), -gap)
            for device, need in needs.items():
                moved[device] = _move(moved[device], step * need)
    return moved


def _move(clock: Clock, by_us: int) -> Clock:
    """Another offset, as far as the clock may be wrong by."""
    limit = clock.uncertainty_us
    moved_us = max(-limit, min(limit, clock.moved_us + by_us))
    offset_us = clock.offset_us - clock.moved_us + moved_us
    return replace(clock, offset_us=offset_us, moved_us=moved_us)


def _gaps(trace: BatchTrace, index: int, clocks: dict[str, Clock]) -> tuple[int, int]:
    """Transfers to and from one stage, in microseconds, negative where the clocks say so."""
    hop = by_client(trace.hops[index], clocks[trace.route[index]])
    before, after = trace.sent_us, trace.received_us
    if index:
        before = by_client(trace.hops[index - 1], clocks[trace.route[index - 1]]).sent_us
    if index + 1 < len(trace.route):
        after = by_client(trace.hops[index + 1], clocks[trace.route[index + 1]]).received_us
    return hop.received_us - before, after - hop.sent_us


def _shortest_transfer_us(trace: BatchTrace, clocks: dict[str, Clock]) -> int:
    return min(min(_gaps(trace, index, clocks)) for index in range(len(trace.route)))
