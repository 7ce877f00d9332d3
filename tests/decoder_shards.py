"""Runs the shards of a language model's plan in a row, by onnxruntime alone: no stage is needed.

The buffers of keys and values are bound as past and present at once, as a stage does it.
"""

from pathlib import Path

import numpy as np
import onnxruntime

from contract.plan import Plan


class DecoderShards:
    """All stages open, with caches for some sequences at the same position."""

    def __init__(self, folder: Path, plan: Plan, rows: int = 1) -> None:
        assert plan.decoding is not None
        self.plan, self.rows, self.position = plan, rows, 0
        self._sessions, self._caches = [], []
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        for stage in plan.stages:
            path = str(folder / stage.folder / "graph.onnx")
            self._sessions.append(onnxruntime.InferenceSession(path, options))
            cache = stage.cache
            assert cache is not None
            size = (rows, cache.kv_heads, plan.decoding.context_tokens, cache.head_size)
            self._caches.append(
                {
                    f"{kind}.{layer}": np.zeros(size, np.float32)
                    for layer in range(cache.layers)
                    for kind in ("key", "value")
                }
            )

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """Logits (rows, vocabulary) after the last of ``ids`` (rows, tokens), sent in chunks."""
        assert self.plan.decoding is not None
        for start in range(0, ids.shape[1], self.plan.decoding.chunk_tokens):
            logits = self.send(ids[:, start : start + self.plan.decoding.chunk_tokens])
        return logits

    def send(self, ids: np.ndarray) -> np.ndarray:
        """One message through all stages."""
        activation = ids
        for session, caches in zip(self._sessions, self._caches, strict=True):
            if self.position and ids.shape[1] > 1:  # onnxruntime takes one sequence at a time
                activation = np.concatenate(
                    [
                        self._run(
                            session,
                            {name: array[row : row + 1] for name, array in caches.items()},
                            activation[row : row + 1],
                        )
                        for row in range(self.rows)
                    ]
                )
            else:
                activation = self._run(session, caches, activation)
        self.position += ids.shape[1]
        return activation

    def generate(self, prompt: np.ndarray, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The best tokens (rows, count), and the logits by which each was chosen."""
        tokens, seen = [], [self.feed(prompt)]
        for _ in range(count):
            tokens.append(seen[-1].argmax(-1)[:, None])
            if len(tokens) < count:
                seen.append(self.send(tokens[-1]))
        return np.concatenate(tokens, axis=1), seen

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        caches: dict[str, np.ndarray],
        activation: np.ndarray,
    ) -> np.ndarray:
        total = self.position + activation.shape[1]
        binding = session.io_binding()
        inputs = {
            session.get_inputs()[0].name: np.ascontiguousarray(activation),
            "seqlens_k": np.full(len(activation), total - 1, np.int32),
            "total_sequence_length": np.array(total, np.int32),
        }
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, array in caches.items():
            binding.bind_cpu_input(f"past_{name}", array)
            binding.bind_output(
                f"present_{name}",
                element_type=np.float32,
                shape=array.shape,
                buffer_ptr=array.ctypes.data,
            )
        binding.bind_output(session.get_outputs()[0].name)
        session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()
