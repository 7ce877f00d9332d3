"""The default engine: onnxruntime, with the weights file mapped."""

import onnxruntime

from contract.tensor_spec import Tensors
from shards.reader import Shard
from shards.session import open_session, run_session


class OnnxRuntimeEngine:
    """Runs a shard in onnxruntime on ``threads`` threads, none of which spin."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__

    def __init__(self, shard: Shard, threads: int, prepack: bool) -> None:
        self._session = open_session(shard.graph_path, threads, prepack)

    def run(self, inputs: Tensors) -> Tensors:
        """See :class:`stage.engine.Engine`."""
        return run_session(self._session, dict(inputs))

    def close(self) -> None:
        """Drop the session."""
        del self._session
