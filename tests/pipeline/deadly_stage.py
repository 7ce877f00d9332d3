"""`shardline stage` with an engine that dies on one batch: for tests, as a process of its own.

python -m tests.pipeline.deadly_stage stage --engine identity --device …
"""

import os
import signal

import numpy as np

import stage.engine
from contract.tensor_spec import Tensors
from shardline.__main__ import main
from stage.engines.onnx_runtime import OnnxRuntimeEngine

DEADLY = 255
"""A batch of nothing but white pixels."""


class DeadlyEngine(OnnxRuntimeEngine):
    """Right answers, but for the batch that kills the process as the kernel would."""

    def run(self, inputs: Tensors) -> Tensors:
        if all(np.asarray(x).size and (np.asarray(x) == DEADLY).all() for x in inputs.values()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(inputs)


if __name__ == "__main__":
    stage.engine.ENGINES["identity"] = "tests.pipeline.deadly_stage:DeadlyEngine"
    main()
