"""Every run of segments that could be a stage, and what it costs on each kind of device, as arrays.

The same figures as :func:`planner.cost_model.stage_costs`, to the last bit: sums run in the same
order. Pure; nothing is chosen here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planner.cost_model import receive_ms, send_ms
from planner.problem import DeviceCosts, Problem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Spans:
    """Runs of segments between two nodes; a node is a place where a stage may begin or end.

    ``nodes`` are segment indices from 0 to the number of segments. ``first`` and ``end`` are
    indices into ``nodes``, one of each for every span, sorted by ``end`` and then by ``first``:
    the spans that end at node ``n`` are those from ``begin_of[n]`` to ``begin_of[n + 1]``.
    """

    nodes: tuple[int, ...]
    first: Ints
    end: Ints
    begin_of: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many spans there are."""
        return len(self.first)

    def segments(self, span: int) -> tuple[int, int]:
        """The half-open range of segments of a span."""
        return self.nodes[int(self.first[span])], self.nodes[int(self.end[span])]


def make_spans(num_segments: int, boundaries: Sequence[int] | None = None) -> Spans:
    """All spans, or only those between neighbouring ``boundaries``."""
    nodes = tuple(boundaries) if boundaries is not None else tuple(range(num_segments + 1))
    first: list[int] = []
    end: list[int] = []
    begin_of = [0, 0]
    for node in range(1, len(nodes)):
        starts = range(node) if boundaries is None else range(node - 1, node)
        first += starts
        end += [node] * len(starts)
        begin_of.append(len(first))
    return Spans(nodes, np.array(first, np.int64), np.array(end, np.int64), tuple(begin_of))


@dataclass(frozen=True)
class SpanCosts:
    """For every span on one device, ms a batch: infinite where it does not fit.

    ``alone_ms`` is what the stage adds to the latency of a batch alone: both wires, both latencies
    and the processor; what the broker adds to it belongs to the edge.
    """

    busy_ms: Floats
    alone_ms: Floats

    @property
    def rate(self) -> Floats:
        """Batches a second; 0 where the span does not fit."""
        return 1e3 / np.maximum(self.busy_ms, 1e-9)


def span_costs(problem: Problem, device: DeviceCosts, spans: Spans) -> SpanCosts:
    """Costs of all spans on a device: as :func:`planner.cost_model.stage_costs` has them."""
    starts = np.array([spans.nodes[index] for index in spans.first])
    ends = np.array([spans.nodes[index] for index in spans.end])
    edges = np.arange(problem.num_segments + 1)
    work = [problem.work_bytes(int(edge)) for edge in edges]
    receive = np.array([receive_ms(size, device.relay) for size in work])
    send = np.array([send_ms(size, device.relay) for size in work])
    down = np.array([device.link.down_ms(size) for size in problem.edge_bytes])
    up = np.array([device.link.up_ms(size) for size in problem.edge_bytes])
    relay = receive[starts] + send[ends]
    compute = _compute_ms(problem, device, starts, ends)
    processor = compute + relay
    wires_down, wires_up = down[starts], up[ends]
    busy = np.maximum(processor, np.maximum(wires_down, wires_up))
    if problem.window_batches:
        turnaround = (wires_down + processor + wires_up) + 4 * device.link.latency_ms
        busy = np.maximum(busy, turnaround / problem.window_batches)
    alone = processor + wires_down + wires_up + 2 * device.link.latency_ms
    return SpanCosts(np.where(np.isfinite(compute), busy, np.inf), alone)


def _compute_ms(problem: Problem, device: DeviceCosts, starts: Ints, ends: Ints) -> Floats:
    """Time of the engine, packed where that fits, unpacked where only that does, else infinite."""
    cut = np.array(
        [device.cut_byte_ms * problem.cut_bytes(e) for e in range(len(problem.edge_bytes))]
    )
    extra: Floats = cut[starts] + cut[ends]
    packed: Floats = _running_sums(device.segment_ms)[starts, ends] + extra
    if device.memory_bytes is None:
        return packed
    weights = np.concatenate([[0], np.cumsum(np.array(problem.weight_bytes, np.int64))])
    whole = (starts == 0) & (ends == problem.num_segments)
    span_weights = weights[ends] - weights[starts] - whole * problem.shared_bytes
    messages = np.array(problem.edge_bytes, np.int64)
    held = problem.window_batches * (messages[starts] + messages[ends])
    peak = _running_maxima(problem.activation_bytes)[starts, ends]
    kept = np.concatenate([[0], np.cumsum(np.array(problem.state_bytes or (), np.int64))])
    state = kept[ends] - kept[starts] if problem.state_bytes else 0
    others = state + peak, held

    def fits(factor: float) -> Bools:
        needed = np.round(device.base_bytes + span_weights * factor + others[0] + others[1])
        return np.asarray(needed <= device.memory_bytes)

    unpacked = np.full_like(packed, np.inf)
    if device.unpacked_ms is not None:
        unpacked = _running_sums(device.unpacked_ms)[starts, ends] + extra
        unpacked = np.where(fits(1.0), unpacked, np.inf)
    return np.where(fits(device.packing_factor), packed, unpacked)


def _running_sums(values: Sequence[float]) -> Floats:
    """``[first, end]``: the sum from first to end, added up from the left as ``sum`` does."""
    count = len(values)
    table = np.zeros((count + 1, count + 1))
    for first in range(count):
        table[first, first + 1 :] = np.cumsum(values[first:])
    return table


def _running_maxima(values: Sequence[int]) -> Ints:
    """``[first, end]``: the largest from first to end."""
    count = len(values)
    table = np.zeros((count + 1, count + 1), np.int64)
    for first in range(count):
        table[first, first + 1 :] = np.maximum.accumulate(values[first:])
    return table


def costs_of_all(problem: Problem, spans: Spans) -> dict[str, SpanCosts]:
    """The costs on every device by its name; devices of one kind share them."""
    known: dict[DeviceCosts, SpanCosts] = {}
    found = {}
    for device in problem.devices:
        kind = replace(device, name="")
        if kind not in known:
            known[kind] = span_costs(problem, kind, spans)
        found[device.name] = known[kind]
    return found
