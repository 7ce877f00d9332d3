"""Runs onnxruntime's offline basic optimisation: BatchNorm folded, constants computed once.

File to file, so that the weights are never held twice in Python.
"""

from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

from contract.errors import ModelError
from planner.onnx_graph import EXTERNAL_BYTES, Array, load_graph
from shards.session import session_options


def fold(source: Path, target: Path) -> ModelProto:
    """Optimise ``source`` into ``target`` (weights beside it, same name ending in ``.bin``).

    Returns:
        The optimised graph, its large initialisers external.

    Raises:
        ModelError: onnxruntime cannot load the model.
        OSError: it cannot write ``target``.
    """
    try:
        _optimise(source, target)
    except Exception as error:  # onnxruntime's own classes share no base below Exception
        if _can_load(source):
            raise OSError(f"onnxruntime cannot write {target.name}") from error
        raise ModelError(
            f"{source.name}: onnxruntime {onnxruntime.__version__} cannot load the model: "
            f"{error!s:.300}; export it again with opset 17 to 20"
        ) from error
    return load_graph(target)


def _optimise(source: Path, target: Path | None) -> None:
    """Load ``source``, and write what became of it unless ``target`` is None."""
    options = session_options(threads=1)
    # Basic only: the later levels write operators and layouts of this very processor.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if target is not None:
        options.optimized_model_filepath = str(target)
        for key, value in (
            ("external_initializers_file_name", target.with_suffix(".bin").name),
            ("external_initializers_min_size_in_bytes", str(EXTERNAL_BYTES)),
        ):
            options.add_session_config_entry(f"session.optimized_model_{key}", value)
    # The session is only opened to be written; it must not pay for a second layout of the weights.
    options.add_session_config_entry("session.disable_prepacking", "1")
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _can_load(source: Path) -> bool:
    """Tells a full disk from a model that is wrong: onnxruntime has one class of error for both."""
    try:
        _optimise(source, None)
    except Exception:  # noqa: BLE001 see above
        return False
    return True


def read_initializers(model: ModelProto, folder: Path) -> dict[str, Array]:
    """Every initialiser by name; external ones are mapped from their file, not read."""
    arrays: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            arrays[tensor.name] = numpy_helper.to_array(tensor)
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        arrays[tensor.name] = np.memmap(
            folder / place["location"],
            dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
            mode="r",
            offset=int(place.get("offset", 0)),
            shape=tuple(tensor.dims),
        )
    return arrays
