"""Measures the time of every segment on this machine.

Each segment runs as a model of its own. That costs it what a whole model saves (fusions across
segments, layouts kept between convolutions, one call instead of fifty), so the times are scaled to
add up to the measured time of the whole model: their ratios come from the segments, their sum from
the whole.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnxruntime

from planner.graph import SegmentedGraph
from planner.onnx_graph import Array, to_bytes
from planner.progress import Progress, silent
from planner.sample_inputs import sample_tensor
from planner.split import StageGraph, take_stage
from shards.session import open_session, run_session

MIN_ROUNDS = 3
MAX_ROUNDS = 30
GROUP_BYTES = 64 * 1024 * 1024
"""Weights whose segments are open at one time; opening all of a large model doubles its memory."""


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
    """Time every segment on random activations, interleaved, and the whole model.

    Takes about ``budget_s`` and what opening the sessions takes; at least three rounds are run,
    however slow the model.
    """
    progress("profiling", 0.0)
    whole_ms = _time_whole(graph, batch_size, threads, budget_s / 4)
    # As many rounds for every group, so that all medians are of equally many runs.
    rounds = round(0.75 * budget_s * 1e3 / max(whole_ms, 1e-3) / 1.5)
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
    raw_ms: list[float] = []
    for group in _groups(graph):
        raw_ms.extend(_time_group(graph, group, batch_size, threads, rounds))
        progress("profiling", len(raw_ms) / graph.num_segments)
    scale = whole_ms / sum(raw_ms)
    return Profile(tuple(scale * value for value in raw_ms), whole_ms, batch_size, threads, rounds)


def _groups(graph: SegmentedGraph) -> Iterator[list[int]]:
    """Neighbouring segments, together at most ``GROUP_BYTES`` of weights (or one segment)."""
    group: list[int] = []
    group_bytes = 0
    for segment in graph.segments:
        if group and group_bytes + segment.weight_bytes > GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(segment.index)
        group_bytes += segment.weight_bytes
    yield group


def _time_group(
    graph: SegmentedGraph, indices: Sequence[int], batch_size: int, threads: int, rounds: int
) -> list[float]:
    stages = [take_stage(graph, index, index + 1) for index in indices]
    sessions = [_open(graph, stage, threads) for stage in stages]
    inputs = [
        {spec.name: sample_tensor(spec, batch_size, seed=0) for spec in stage.inputs}
        for stage in stages
    ]
    samples: list[list[float]] = [[] for _ in stages]
    for _ in range(rounds + 1):
        for session, feed, times in zip(sessions, inputs, samples, strict=True):
            times.append(_time_once(session, feed))
    return [statistics.median(times[1:]) for times in samples]  # the first run allocates


def _open(graph: SegmentedGraph, stage: StageGraph, threads: int) -> onnxruntime.InferenceSession:
    """A session on the canonical model's own weights file."""
    path = graph.model.shard_path / "segment.onnx"
    path.write_bytes(to_bytes(stage.model(graph.model.places)))
    try:
        return open_session(path, threads)
    finally:
        path.unlink()


def _time_whole(graph: SegmentedGraph, batch_size: int, threads: int, budget_s: float) -> float:
    model = graph.model
    session = open_session(model.graph_path, threads)
    feed = {spec.name: sample_tensor(spec, batch_size, seed=0) for spec in model.inputs}
    run_session(session, feed)
    times: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(times) < MIN_ROUNDS or (time.perf_counter() < deadline and len(times) < MAX_ROUNDS):
        times.append(_time_once(session, feed))
    return statistics.median(times)


def _time_once(session: onnxruntime.InferenceSession, feed: dict[str, Array]) -> float:
    """One run in ms."""
    started = time.perf_counter()
    run_session(session, feed)
    return (time.perf_counter() - started) * 1e3
