"""What of a model a device measures at once, and what its answer says of each segment. Pure.

A *block* is a range of consecutive segments. The whole model is one where it fits the device's
memory, so that kernels are timed as they are fused in it (docs/adr/0015); otherwise as many blocks
as needed, each as large as fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from contract.command import MAX_KERNELS, MAX_WEIGHTS, GeneratedWeight, Timings
from contract.errors import ModelError
from contract.profile import DEFAULT_PACKING_FACTOR, BatchTimings
from contract.tensor_spec import TensorSpec
from planner.graph import SegmentedGraph
from planner.onnx_graph import to_bytes
from planner.profiler import attribute_kernels, segment_of_names
from planner.split import StageGraph, take_stage
from shards.writer import ByteRange

BASE_BYTES = 120_000_000
"""Kept free for the process itself when blocks are chosen: 70 MB on x86-64, with a margin."""
AGENT_BYTES = 5_000_000
"""What an idle `shardline stage` has beyond the process that measures: 73.4 MB against 69.5
(x86-64, 2026-11-21)."""
MAX_NODES = MAX_KERNELS * 4 // 5
"""A block's nodes; the engine adds changes of layout, each a kernel."""
LARGE_WEIGHTS_BYTES = 8_000_000
"""From here on a block's weights tell how much memory a byte of them takes."""
_ALIGNMENT = 64
_SMALL_SCALE = 0.1
_DTYPES = {np.dtype("f2"): "float16", np.dtype("f4"): "float32", np.dtype("f8"): "float64"}


@dataclass(frozen=True)
class Block:
    """A range of segments as a graph file, and the weights that a device makes up for it.

    ``end`` is one after the last segment. ``graph`` is the ONNX file's bytes.
    """

    first: int
    end: int
    graph: bytes
    inputs: tuple[TensorSpec, ...]
    weights: tuple[GeneratedWeight, ...]
    weights_size_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights themselves."""
        return sum(weight.length for weight in self.weights)


@dataclass(frozen=True)
class BlockAnswer:
    """A block's range and bytes, and what a device measured of it."""

    first: int
    end: int
    weight_bytes: int
    timings: Timings


@dataclass(frozen=True)
class MemoryFigures:
    """Of one device: see :class:`contract.profile.DeviceProfile`."""

    base_bytes: int
    packing_factor: float
    unpacked_factor: float | None
    activation_bytes: int | None


def weight_limit(memory_bytes: int) -> int:
    """How many bytes of weights a device with so much memory measures at once.

    Half of what it has beyond the process itself, since measuring takes place beside the shard that
    it may hold; and each byte of weights takes two when they are packed.
    """
    return max(1, int((memory_bytes - BASE_BYTES) / 2 / DEFAULT_PACKING_FACTOR))


def choose_blocks(graph: SegmentedGraph, limit_bytes: int) -> list[tuple[int, int]]:
    """Ranges of segments, in order, each with at most ``limit_bytes`` of weights.

    A segment that has more is a block of its own. The whole model is one block where it fits.
    """
    bounds = [0]
    weights: dict[str, int] = {}
    nodes = 0
    for segment in graph.segments:
        own = {name: graph.model.weights[name].nbytes for name in segment.weight_names}
        num_nodes = segment.end_node - segment.first_node
        merged = weights | own
        if segment.index > bounds[-1] and (
            sum(merged.values()) > limit_bytes
            or len(merged) > MAX_WEIGHTS
            or nodes + num_nodes > MAX_NODES
        ):
            bounds.append(segment.index)
            merged, nodes = own, 0
        weights, nodes = merged, nodes + num_nodes
    return list(pairwise([*bounds, graph.num_segments]))


def make_block(graph: SegmentedGraph, first: int, end: int) -> Block:
    """The graph of a range of segments with its weights at places of their own.

    Raises:
        ModelError: a single segment has more weights than a request can name.
    """
    stage = take_stage(graph, first, end)
    if len(stage.weights) > MAX_WEIGHTS:
        raise ModelError(
            f"{graph.model.info.name}: segments {first} to {end} have {len(stage.weights):,} "
            f"weights, devices measure at most {MAX_WEIGHTS:,} at once; this model has too few "
            "cut points to be profiled"
        )
    places, size_bytes = _place_weights(stage)
    return Block(
        first=first,
        end=end,
        graph=to_bytes(stage.model(places)),
        inputs=stage.inputs,
        weights=tuple(
            GeneratedWeight.model_validate(
                {
                    "offset": places[name].offset,
                    "length": places[name].length,
                    "dtype": _DTYPES[array.dtype],
                    "scale": weight_scale(array.shape),
                }
            )
            for name, array in stage.weights.items()
        ),
        weights_size_bytes=size_bytes,
    )


def _place_weights(stage: StageGraph) -> tuple[dict[str, ByteRange], int]:
    places: dict[str, ByteRange] = {}
    end = 0
    for name, array in stage.weights.items():
        begin = -(-end // _ALIGNMENT) * _ALIGNMENT
        places[name] = ByteRange(begin, array.nbytes)
        end = begin + array.nbytes
    return places, end


def weight_scale(shape: Sequence[int]) -> float:
    """Deviation of a made-up weight of this shape: activations then neither grow nor die out.

    He et al., "Delving Deep into Rectifiers" (2015), eq. 10. A matrix may be used either way round.
    """
    if len(shape) < 2:
        return _SMALL_SCALE
    fan_in = math.prod(shape[1:]) if len(shape) > 2 else max(shape)
    return round(math.sqrt(2 / max(1, fan_in)), 6)


def combine(graph: SegmentedGraph, batch_size: int, answers: Sequence[BlockAnswer]) -> BatchTimings:
    """Times of all segments from those of the blocks, which cover them in order."""
    segment_of = segment_of_names(graph)
    segment_ms: list[float] = []
    unpacked_ms: list[float] = []
    for answer in answers:
        first, end, timings = answer.first, answer.end, answer.timings
        raw = attribute_kernels(timings.kernels, segment_of, graph.num_segments)[first:end]
        known = sum(raw)
        shares = [ms / known for ms in raw] if known > 0 else [1 / (end - first)] * (end - first)
        segment_ms += [timings.whole_ms * share for share in shares]
        if timings.unpacked_whole_ms is not None:
            unpacked_ms += [timings.unpacked_whole_ms * share for share in shares]
    complete = len(unpacked_ms) == len(segment_ms)
    return BatchTimings(
        batch_size=batch_size,
        segment_ms=tuple(segment_ms),
        unpacked_ms=tuple(unpacked_ms) if complete else None,
        whole_ms=sum(answer.timings.whole_ms for answer in answers),
        unpacked_whole_ms=sum(unpacked_ms) if complete else None,
    )


def memory_figures(answers: Sequence[BlockAnswer]) -> MemoryFigures:
    """What the processes that measured the blocks tell of a stage's memory.

    Packed weights are all in memory once the graph is loaded. Unpacked ones come in when they are
    first used, so there the whole peak counts, activations too.
    """
    heaviest = max(answers, key=lambda answer: answer.weight_bytes)
    timings, factor, unpacked = heaviest.timings, DEFAULT_PACKING_FACTOR, None
    if heaviest.weight_bytes > LARGE_WEIGHTS_BYTES:
        factor = _factor(timings.load_peak_bytes, heaviest)
        if timings.unpacked_peak_bytes is not None:
            unpacked = _factor(timings.unpacked_peak_bytes, heaviest)
    beyond = max(a.timings.peak_bytes - a.timings.load_peak_bytes for a in answers)
    return MemoryFigures(
        base_bytes=max(answer.timings.base_bytes for answer in answers) + AGENT_BYTES,
        packing_factor=factor,
        unpacked_factor=unpacked,
        activation_bytes=beyond if beyond > 0 else None,
    )


def _factor(peak_bytes: int, answer: BlockAnswer) -> float:
    """Bytes of memory for a byte of weights; at least 1, since all of them are read."""
    return max(1.0, round((peak_bytes - answer.timings.base_bytes) / answer.weight_bytes, 3))
