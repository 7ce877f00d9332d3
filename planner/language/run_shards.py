"""Runs the stages of a decoder here, step by step, one open at a time.

The caches are plain arrays, bound to the graph as past and present at once, as a stage does it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract.decoder import CacheSpec, Decoding
from contract.errors import EngineError
from contract.plan import Plan
from planner.graph import SegmentedGraph
from planner.language.state import KINDS, SEQLENS, TOTAL
from planner.onnx_graph import Array, to_bytes
from planner.split import StageGraph, take_stage
from shards.reader import read_shard
from shards.session import Session, open_session


@dataclass
class StageRunner:
    """One stage's session with caches for some sequences."""

    session: Session | None
    cache: CacheSpec
    decoding: Decoding

    def close(self) -> None:
        """Free the session, whoever still holds this."""
        self.session = None

    def new_caches(self, rows: int) -> dict[str, Array]:
        """Empty caches by the names of the graph's inputs without ``past_``."""
        size = (rows, self.cache.kv_heads, self.decoding.context_tokens, self.cache.head_size)
        return {
            f"{kind}.{layer}": np.zeros(size, np.float32)
            for layer in range(self.cache.layers)
            for kind in KINDS
        }

    def step(self, caches: dict[str, Array], activation: Array, position: int) -> Array:
        """The output for an activation (rows, tokens, …) whose first token is at ``position``.

        Several tokens with a past go row by row: onnxruntime's GroupQueryAttention takes no more.

        Raises:
            EngineError: onnxruntime refuses or fails.
        """
        rows, tokens = activation.shape[:2]
        if rows > 1 and tokens > 1 and position > 0:
            parts = [
                self.step(
                    {name: array[row : row + 1] for name, array in caches.items()},
                    activation[row : row + 1],
                    position,
                )
                for row in range(rows)
            ]
            return np.concatenate(parts)
        assert self.session is not None
        total = position + tokens
        binding = self.session.io_binding()
        name = self.session.get_inputs()[0].name
        binding.bind_cpu_input(name, np.ascontiguousarray(activation))
        binding.bind_cpu_input(SEQLENS, np.full(rows, total - 1, np.int32))
        binding.bind_cpu_input(TOTAL, np.array(total, np.int32))
        for its, array in caches.items():
            binding.bind_cpu_input(f"past_{its}", array)
            binding.bind_output(
                f"present_{its}",
                element_type=np.float32,
                shape=array.shape,
                buffer_ptr=array.ctypes.data,
            )
        output = self.session.get_outputs()[0].name
        binding.bind_output(output)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(f"onnxruntime failed to run: {error!s:.500}") from error
        result: Array = binding.get_outputs()[-1].numpy()
        return result


def shard_runners(folder: Path, plan: Plan, threads: int) -> Iterator[StageRunner]:
    """The stages of a plan from their shards; close each before the next one is opened.

    Raises:
        ShardError: a shard is missing or corrupt.
        EngineError: onnxruntime cannot load one.
    """
    assert plan.decoding is not None
    for stage in plan.stages:
        assert stage.cache is not None
        shard = read_shard(folder / stage.folder, plan, stage.stage_index)
        yield StageRunner(open_session(shard.graph_path, threads), stage.cache, plan.decoding)


def block_runners(graph: SegmentedGraph, threads: int) -> Iterator[StageRunner]:
    """The segments of a canonical model as stages; close each before the next one is opened.

    Raises:
        EngineError: onnxruntime cannot load one.
    """
    for index in range(graph.num_segments):
        yield open_block(graph, take_stage(graph, index, index + 1), threads)


def open_block(
    graph: SegmentedGraph, block: StageGraph, threads: int, prepack: bool = True
) -> StageRunner:
    """A part of a canonical model on the model's own weights file.

    Raises:
        EngineError: onnxruntime cannot load it.
        EnvironmentMissingError: there is no room for its graph.
    """
    assert block.cache is not None
    assert block.decoding is not None
    path = graph.model.shard_path / "block.onnx"
    data = to_bytes(block.model(graph.model.places))
    with graph.model.folder.writing(len(data)):
        path.write_bytes(data)
    try:
        return StageRunner(open_session(path, threads, prepack), block.cache, block.decoding)
    finally:
        path.unlink()
