"""Measures the time of every segment on this machine, inside the whole model.

onnxruntime times each kernel of the optimised graph, where convolutions are fused with their
activations and keep their own layout from one to the next. A kernel is named after the last tensor
that it stands for, so its time belongs to the segment which makes that tensor; a kernel of
onnxruntime's own making (a change of layout) belongs to the kernel that follows. Segments run as
models of their own would be several times too slow where large activations are cheap, as at the
front of a CNN, and the balance would be wrong.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnxruntime

from planner.graph import SegmentedGraph
from planner.onnx_graph import Array, to_bytes
from planner.progress import Progress, silent
from planner.sample_inputs import sample_tensor
from planner.split import StageGraph, take_stage
from shards.session import open_session
from shards.timing import WARM_UP_RUNS, run_often, time_kernels, time_once

PACKING_ROUNDS = 5
RUNS_IN_A_TURN = 2
_LAYOUT = "_nchwc"
"""What onnxruntime appends to the name of a convolution that it moves to its blocked layout."""


@dataclass(frozen=True)
class Profile:
    """Median times in ms for a batch; ``segment_ms`` adds up to ``whole_ms``."""

    segment_ms: tuple[float, ...]
    whole_ms: float
    batch_size: int
    threads: int
    rounds: int


def profile_segments(
    graph: SegmentedGraph,
    batch_size: int,
    threads: int = 1,
    budget_s: float = 4.0,
    progress: Progress = silent,
) -> Profile:
    """Time every segment and the whole model on made-up inputs.

    Takes about ``budget_s``, and as long as a few runs of the model take, however slow it is.

    Raises:
        EngineError: onnxruntime cannot run the model.
    """
    progress("profiling", 0.0)
    feed = {spec.name: sample_tensor(spec, batch_size, seed=0) for spec in graph.model.inputs}
    whole_ms = _time_whole(graph, feed, threads, budget_s / 2)
    progress("profiling", 0.5)
    kernels, runs = time_kernels(graph.model.graph_path, feed, threads, budget_s / 2)
    raw_ms = attribute_kernels(kernels, segment_of_names(graph), graph.num_segments)
    scale = whole_ms / (sum(raw_ms) or 1.0)
    return Profile(tuple(scale * value for value in raw_ms), whole_ms, batch_size, threads, runs)


def time_stages(
    graph: SegmentedGraph,
    ranges: Sequence[tuple[int, int]],
    batch_size: int,
    threads: int,
    rounds: int,
) -> list[float]:
    """Median time in ms of each half-open range of segments, run as the stage that it would be.

    All stages are open at once and take turns, so that a slow moment of the machine hits all. In
    each turn a stage runs a few times and the first does not count: the others' weights have pushed
    its own out of the processor's cache, which a stage that runs alone on its device never sees.
    """
    stages = [take_stage(graph, first, end) for first, end in ranges]
    sessions = [_open(graph, stage, threads) for stage in stages]
    feeds = [
        {spec.name: sample_tensor(spec, batch_size, seed=0) for spec in stage.inputs}
        for stage in stages
    ]
    samples: list[list[float]] = [[] for _ in stages]
    for _ in range(rounds):
        for session, feed, times in zip(sessions, feeds, samples, strict=True):
            time_once(session, feed)
            times += [time_once(session, feed) for _ in range(RUNS_IN_A_TURN)]
    return [statistics.median(times) for times in samples]


def unpacked_ratio(graph: SegmentedGraph, batch_size: int, threads: int = 1) -> float:
    """How many times as long the whole model takes when its weights are not prepacked.

    Both take turns, so that a slow moment of the machine hits both.
    """
    feed = {spec.name: sample_tensor(spec, batch_size, seed=0) for spec in graph.model.inputs}
    sessions = [open_session(graph.model.graph_path, threads, prepack) for prepack in (True, False)]
    samples: list[list[float]] = [[], []]
    for _ in range(WARM_UP_RUNS + PACKING_ROUNDS):
        for session, times in zip(sessions, samples, strict=True):
            times.append(time_once(session, feed))
    packed, unpacked = (statistics.median(times[WARM_UP_RUNS:]) for times in samples)
    return unpacked / max(packed, 1e-9)


def _open(graph: SegmentedGraph, stage: StageGraph, threads: int) -> onnxruntime.InferenceSession:
    """A session on the canonical model's own weights file."""
    path = graph.model.shard_path / "stage.onnx"
    path.write_bytes(to_bytes(stage.model(graph.model.places)))
    try:
        return open_session(path, threads)
    finally:
        path.unlink()


def attribute_kernels(
    kernels: Sequence[tuple[str, float]], segment_of: Mapping[str, int], num_segments: int
) -> list[float]:
    """Time of each segment from the times of kernels, by name, in the order in which they ran.

    A kernel whose name says nothing counts with the next one that does. Pure.
    """
    segment_ms = [0.0] * num_segments
    unnamed_ms = 0.0
    last = 0
    for name, duration_ms in kernels:
        segment = segment_of.get(name.removesuffix(_LAYOUT))
        if segment is None:
            unnamed_ms += duration_ms
            continue
        segment_ms[segment] += duration_ms + unnamed_ms
        unnamed_ms, last = 0.0, segment
    segment_ms[last] += unnamed_ms
    return segment_ms


def segment_of_names(graph: SegmentedGraph) -> dict[str, int]:
    """The segment of every node and tensor of the body, by name."""
    return {
        name: segment.index
        for segment in graph.segments
        for node in graph.body[segment.first_node : segment.end_node]
        for name in (node.name, *node.output)
        if name
    }


def _time_whole(
    graph: SegmentedGraph, feed: dict[str, Array], threads: int, budget_s: float
) -> float:
    session = open_session(graph.model.graph_path, threads)
    return statistics.median(run_often(session, feed, budget_s))
