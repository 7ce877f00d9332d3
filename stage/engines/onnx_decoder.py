"""Runs a shard of a language model in onnxruntime: one step for a group of sequences.

The memory of a cache is bound as past and as present at once, so that GroupQueryAttention writes
the new positions in place and no token copies a cache. A step of one token, which is nearly all of
them, uses a binding that is made once for each cache: only the input's values are written into it.

onnxruntime 1.23.2 refuses several tokens of several sequences behind a past («batch_size must be 1
when sequence_length > 1 and past context is given»): such chunks run one sequence after another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime import OrtValue

from contract.decoder import CacheSpec, Decoding
from contract.errors import EngineError
from contract.tensor_spec import BATCH, TOKENS, Tensors, TensorSpec
from shards.reader import Shard
from shards.session import Session, open_session

Array = npt.NDArray[Any]
PARTS = ("key", "value")


class OnnxCacheBlock:
    """Keys and values of ``rows`` sequences, (rows, kv_heads, context_tokens, head_size) each."""

    def __init__(self, rows: int, cache: CacheSpec, context_tokens: int) -> None:
        shape = (rows, cache.kv_heads, context_tokens, cache.head_size)
        self.rows = rows
        self.size_bytes = rows * cache.bytes_per_token * context_tokens
        # Zeros are not touched before they are used: a short sequence takes little memory.
        self.layers = {
            f"{part}.{layer}": np.zeros(shape, np.float32)
            for layer in range(cache.layers)
            for part in PARTS
        }
        self.one_token: _Binding | None = None


class OnnxDecoderEngine:
    """See :class:`stage.engine.DecoderEngine`. ``threads`` threads, none of which spin."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__

    def __init__(
        self, shard: Shard, cache: CacheSpec, decoding: Decoding, threads: int, prepack: bool
    ) -> None:
        self._given, self._gives = shard.manifest.inputs[0], shard.manifest.outputs[0]
        self._cache, self._decoding = cache, decoding
        self._session = open_session(shard.graph_path, threads, prepack)
        _check_graph(self._session, shard, cache)

    def allocate(self, rows: int) -> OnnxCacheBlock:
        """See :class:`stage.engine.DecoderEngine`."""
        tokens = self._decoding.context_tokens
        try:
            return OnnxCacheBlock(rows, self._cache, tokens)
        except MemoryError as error:
            raise EngineError(
                f"not enough memory for the caches of {rows} sequences of {tokens:,} tokens, "
                f"{rows * tokens * self._cache.bytes_per_token:,} bytes; plan a shorter --context, "
                "fewer --sequences, or more stages"
            ) from error

    def step(self, block: OnnxCacheBlock, inputs: Tensors, position: int) -> Tensors:
        """See :class:`stage.engine.DecoderEngine`."""
        given = inputs[self._given.name]
        tokens = given.shape[1]
        try:
            if tokens == 1:
                if block.one_token is None:
                    block.one_token = self._bind(block, slice(0, block.rows), 1)
                answer = block.one_token.run(self._session, given, position)
            elif position == 0 or block.rows == 1:
                binding = self._bind(block, slice(0, block.rows), tokens)
                answer = binding.run(self._session, given, position)
            else:
                answer = np.concatenate(
                    [
                        self._bind(block, slice(row, row + 1), tokens).run(
                            self._session, given[row : row + 1], position
                        )
                        for row in range(block.rows)
                    ]
                )
        except Exception as error:  # onnxruntime's own classes share no base below Exception
            raise EngineError(f"onnxruntime failed to run: {error!s:.500}") from error
        return {self._gives.name: answer}

    def _bind(self, block: OnnxCacheBlock, rows: slice, tokens: int) -> "_Binding":
        return _Binding(self._session, block, rows, tokens, self._given, self._gives)

    def close(self) -> None:
        """Drop the session. Blocks must be gone: their bindings hold it, too."""
        del self._session


class _Binding:
    """One step's tensors, all of them memory of ours that onnxruntime reads and writes."""

    def __init__(
        self,
        session: Session,
        block: OnnxCacheBlock,
        rows: slice,
        tokens: int,
        given: TensorSpec,
        gives: TensorSpec,
    ) -> None:
        count = rows.stop - rows.start
        self._tokens = tokens
        self._input = np.zeros(_sizes(given, count, tokens), given.dtype)
        self._output = np.zeros(_sizes(gives, count, tokens), gives.dtype)
        self._last = np.zeros(count, np.int32)
        self._total = np.zeros((), np.int32)
        self._binding = session.io_binding()
        for name, array in (
            (given.name, self._input),
            ("seqlens_k", self._last),
            ("total_sequence_length", self._total),
        ):
            self._binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        self._binding.bind_ortvalue_output(gives.name, OrtValue.ortvalue_from_numpy(self._output))
        for name, memory in block.layers.items():
            shared = OrtValue.ortvalue_from_numpy(memory[rows])
            self._binding.bind_ortvalue_input(f"past_{name}", shared)
            self._binding.bind_ortvalue_output(f"present_{name}", shared)

    def run(self, session: Session, given: Array, position: int) -> Array:
        """The answer lies in the same memory at the next run."""
        np.copyto(self._input, given)
        self._last.fill(position + self._tokens - 1)
        self._total.fill(position + self._tokens)
        session.run_with_iobinding(self._binding)
        return self._output


def _sizes(spec: TensorSpec, rows: int, tokens: int) -> list[int]:
    words = {BATCH: rows, TOKENS: tokens}
    return [d if isinstance(d, int) else words[d] for d in spec.shape]


def _check_graph(session: Session, shard: Shard, cache: CacheSpec) -> None:
    """Names of what goes in and out: a plan that says otherwise is told at loading."""

    def check(kind: str, found: Sequence[Any], own: str, more: tuple[str, ...], time: str) -> None:
        caches = {f"{time}_{part}.{n}" for part in PARTS for n in range(cache.layers)}
        expected, actual = {own, *more, *caches}, {value.name for value in found}
        if expected != actual:
            raise EngineError(
                f"{shard.graph_path}: {kind} missing or unknown: "
                f"{sorted(expected ^ actual)!r:.300}; build the plan again with `shardline plan`"
            )

    cached = ("seqlens_k", "total_sequence_length")
    given, gives = shard.manifest.inputs[0].name, shard.manifest.outputs[0].name
    check("inputs", session.get_inputs(), given, cached, "past")
    check("outputs", session.get_outputs(), gives, (), "present")
