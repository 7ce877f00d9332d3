"""Measures the shape of every tensor by running the graph at two batch sizes.

Measured, not inferred: what a reshape does with a computed shape is then simply seen. Only the
shapes leave the session, so no activation outlives its last use.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime
from onnx import ModelProto, helper

from contract.errors import EngineError, ModelError
from contract.tensor_spec import BATCH, DType, TensorSpec
from planner.onnx_graph import dtype_name, to_bytes
from planner.sample_inputs import sample_tensor
from shards.session import run_session, session_options

BATCH_SIZES = (2, 3)  # not 1, which also is what broadcasting makes of anything


class ProbedTensor(NamedTuple):
    """A tensor's element type and its dimensions.

    A dimension is ``(k, 0)`` for the fixed size k, ``(k, 1)`` for k times the batch, or None when
    it follows neither rule.
    """

    dtype: DType | None
    dims: tuple[tuple[int, int] | None, ...]

    def spec(self, name: str) -> TensorSpec | None:
        """As a spec, unless a dimension is neither fixed nor the batch itself."""
        shape: list[int | str] = []
        for dim in self.dims:
            if dim is None or (dim[1] and dim[0] != 1):
                return None
            shape.append(BATCH if dim[1] else dim[0])
        if self.dtype is None:
            return None
        return TensorSpec.model_validate({"name": name, "dtype": self.dtype, "shape": tuple(shape)})

    def size(self, batch_size: int, tokens: int = 1) -> tuple[int, ...]:
        """Concrete dimensions at a batch size; one that follows no rule counts as 1.

        Such a tensor has no ``tokens``.
        """
        assert tokens == 1
        return tuple(1 if dim is None else dim[0] * batch_size ** dim[1] for dim in self.dims)


def probe(model: ModelProto, model_input: TensorSpec, path: Path) -> dict[str, ProbedTensor]:
    """Shapes and types of all tensors that nodes of the main graph produce, and of the input.

    Args:
        model: its external data lies in ``path``'s folder.
        model_input: the graph's only input.
        path: where to write the probing graph.

    Raises:
        ModelError: the model cannot be run.
    """
    types = _element_types(model)
    names = [
        name for node in model.graph.node for name in node.output if name and types.get(name) != 0
    ]
    probing = ModelProto()
    probing.CopyFrom(model)
    del probing.graph.output[:]
    outputs = {}
    for index, name in enumerate(names):
        shape_name = f"probe/{index}"
        outputs[shape_name] = name
        probing.graph.node.append(helper.make_node("Shape", [name], [shape_name]))
        probing.graph.output.append(
            helper.make_tensor_value_info(shape_name, onnx.TensorProto.INT64, None)
        )
    path.write_bytes(to_bytes(probing))
    try:
        session = _open(path)
        first, second = (
            run_session(session, {model_input.name: sample_tensor(model_input, size, seed=0)})
            for size in BATCH_SIZES
        )
    except EngineError as error:
        raise ModelError(
            f"the model cannot be run at batch sizes {BATCH_SIZES}: {error}"
        ) from error
    probed = {
        name: ProbedTensor(
            dtype_name(types.get(name, 0)),
            _rules(tuple(first[key].tolist()), tuple(second[key].tolist())),
        )
        for key, name in outputs.items()
    }
    dims = tuple((1, 1) if dim == BATCH else (int(dim), 0) for dim in model_input.shape)
    probed[model_input.name] = ProbedTensor(model_input.dtype, dims)
    return probed


def _open(path: Path) -> onnxruntime.InferenceSession:
    """A session that holds as little as possible: it runs twice, and only shapes come out."""
    options = session_options(threads=1, prepack=False)
    # In the default order every shape is read at the end, with all activations still there; and
    # optimisation would keep each in two layouts.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base below Exception
        raise EngineError(f"onnxruntime cannot load it: {error!s:.300}") from error


def _rules(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[tuple[int, int] | None, ...]:
    if len(first) != len(second):
        return (None,)
    rules: list[tuple[int, int] | None] = []
    small, large = BATCH_SIZES
    for a, b in zip(first, second, strict=True):
        if a == b:
            rules.append((a, 0))
        elif a % small == 0 and a // small * large == b:
            rules.append((a // small, 1))
        else:
            rules.append(None)
    return tuple(rules)


def _element_types(model: ModelProto) -> Mapping[str, int]:
    """ONNX element type by tensor name; 0 for what is no tensor (a sequence, an optional)."""
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (
            *inferred.graph.value_info,
            *inferred.graph.input,
            *inferred.graph.output,
        )
    }
