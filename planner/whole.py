"""Runs the whole canonical model in one session: the single-device baseline."""

from contract.tensor_spec import TensorSpec
from planner.canonical import CanonicalModel
from planner.onnx_graph import Array
from shards.session import open_session, run_session


class WholeModel:
    """The unsplit model in onnxruntime, as a stage would run it. Takes what stage 0 takes."""

    def __init__(self, model: CanonicalModel, threads: int) -> None:
        self.info = model.info
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self._session = open_session(model.graph_path, threads)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name, for inputs by name.

        Raises:
            EngineError: this input cannot be run.
        """
        return run_session(self._session, inputs)


def open_whole(model: CanonicalModel, threads: int) -> WholeModel:
    """Open the canonical model as one session on ``threads`` threads.

    Raises:
        EngineError: onnxruntime cannot load it.
    """
    return WholeModel(model, threads)
