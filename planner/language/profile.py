"""Measures the time of every block of a language model on this machine: one decoding step.

Each kind of block is measured once, alone: a block costs in the whole model what it costs alone,
since a step's activations are small and its time is that of reading weights. So no more than one
block's weights are in memory, which would not be so inside the whole model (docs/adr/0035).
"""

import statistics
import time
from collections.abc import Hashable

import numpy as np

from planner.graph import SegmentedGraph
from planner.language.run_shards import open_block
from planner.onnx_graph import Array
from planner.profiler import Profile
from planner.progress import Progress, silent
from planner.split import StageGraph, take_stage
from shards.timing import MAX_ROUNDS, MIN_ROUNDS, WARM_UP_RUNS


def profile_blocks(
    graph: SegmentedGraph,
    batch_size: int,
    threads: int = 1,
    budget_s: float = 4.0,
    progress: Progress = silent,
    prepack: bool = True,
) -> Profile:
    """Time every block with half its context behind it, one token of each of the sequences.

    Raises:
        EngineError: onnxruntime cannot run the model.
    """
    blocks = [take_stage(graph, index, index + 1) for index in range(graph.num_segments)]
    kinds: dict[Hashable, int] = {}
    kind_of = [kinds.setdefault(_kind(block), index) for index, block in enumerate(blocks)]
    found: dict[int, list[float]] = {}
    for done, index in enumerate(kinds.values()):
        progress("profiling", done / len(kinds))
        found[index] = _time(
            graph, blocks[index], batch_size, threads, budget_s / len(kinds), prepack
        )
    times = tuple(statistics.median(found[index]) for index in kind_of)
    rounds = min(len(each) for each in found.values())
    return Profile(times, sum(times), batch_size, threads, rounds)


def unpacked_ratio(graph: SegmentedGraph, batch_size: int, threads: int = 1) -> float:
    """How many times as long a step takes when weights are not prepacked."""
    packed, unpacked = (
        profile_blocks(graph, batch_size, threads, budget_s=1.0, prepack=prepack).whole_ms
        for prepack in (True, False)
    )
    return unpacked / max(packed, 1e-9)


def _kind(block: StageGraph) -> Hashable:
    """Blocks of one kind compute the same with weights of the same shapes."""
    return (
        tuple(node.op_type for node in block.nodes),
        tuple(sorted((array.dtype.name, array.shape) for array in block.weights.values())),
        block.inputs[0].shape,
    )


def _time(
    graph: SegmentedGraph,
    block: StageGraph,
    batch_size: int,
    threads: int,
    budget_s: float,
    prepack: bool,
) -> list[float]:
    assert block.decoding is not None
    runner = open_block(graph, block, threads, prepack)
    caches = runner.new_caches(batch_size)
    activation = _activation(block, batch_size)
    position = block.decoding.context_tokens // 2
    times: list[float] = []
    deadline = time.perf_counter() + budget_s
    for _ in range(WARM_UP_RUNS):
        runner.step(caches, activation, position)
    while len(times) < MIN_ROUNDS or (time.perf_counter() < deadline and len(times) < MAX_ROUNDS):
        started = time.perf_counter()
        runner.step(caches, activation, position)
        times.append((time.perf_counter() - started) * 1e3)
    return times


def _activation(block: StageGraph, batch_size: int) -> Array:
    spec = block.inputs[0]
    if spec.dtype == "int64":
        return np.ones((batch_size, 1), np.int64)
    generator = np.random.default_rng(0)
    hidden = spec.shape[-1]
    assert isinstance(hidden, int)
    return generator.standard_normal((batch_size, 1, hidden), np.float32)
