"""Runs a shard with torch's eager operators: a second opinion, and for boards without onnxruntime.

Slower than onnxruntime (no fusion, weights reordered on every call); see `torch_ops` for the
operators. Needs the packages torch and onnx, which only this engine imports in a stage.
"""

import numpy as np
import torch

from contract.errors import EngineError, TensorMismatchError
from contract.tensor_spec import Tensors, check_tensors
from shards.reader import Shard
from stage.engines.torch_ops.program import Program


class TorchEngine:
    """Runs a shard in torch on ``threads`` threads (a setting of the process: the last one wins).

    ``prepack`` stores convolution weights channels-last, which is faster but copies them: without
    it every weight stays a view of the mapped weights file.
    """

    name = "torch"
    version: str = torch.__version__

    def __init__(self, shard: Shard, threads: int, prepack: bool) -> None:
        self._threads = threads
        self._manifest = shard.manifest
        self._where = str(shard.graph_path)
        self._program = Program(shard)
        if prepack:
            self._program.prefer_channels_last()

    def run(self, inputs: Tensors) -> Tensors:
        """See :class:`stage.engine.Engine`."""
        try:
            check_tensors(self._where, self._manifest.inputs, inputs)
        except TensorMismatchError as error:
            raise EngineError(str(error)) from error
        # Per thread and process in torch, and setting it clears oneDNN's cache of primitives.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            # torch.tensor copies: a view of a read-only array would make torch warn.
            values = {
                name: torch.tensor(np.ascontiguousarray(array)) for name, array in inputs.items()
            }
            outputs = self._program.run(values)
            return {name: value.contiguous().numpy() for name, value in outputs.items()}

    def close(self) -> None:
        """Drop the weights; their mapping goes with them."""
        del self._program
