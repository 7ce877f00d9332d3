"""Shapes of a decoder's tensors, as the exporter states them: sizes, ``batch`` and ``tokens``."""

from typing import NamedTuple

from onnx import ModelProto

from contract.tensor_spec import BATCH, TOKENS, DType, TensorSpec
from planner.onnx_graph import dtype_name

Dim = int | str | None
"""A size, ``batch``, ``tokens``, or None for anything else (such as their product)."""


class TokenTensor(NamedTuple):
    """A tensor's element type and its dimensions."""

    dtype: DType | None
    dims: tuple[Dim, ...]

    def spec(self, name: str) -> TensorSpec | None:
        """As a spec, unless a dimension is neither fixed nor the batch or the tokens."""
        if self.dtype is None or None in self.dims:
            return None
        return TensorSpec.model_validate({"name": name, "dtype": self.dtype, "shape": self.dims})

    def size(self, batch_size: int, tokens: int = 1) -> tuple[int, ...]:
        """Concrete dimensions; one that follows no rule counts as batch times tokens."""
        known = {BATCH: batch_size, TOKENS: tokens, None: batch_size * tokens}
        return tuple(dim if isinstance(dim, int) else known[dim] for dim in self.dims)


def read_tensors(model: ModelProto) -> dict[str, TokenTensor]:
    """Every tensor whose rank the graph states."""
    found = {}
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            continue
        dims: list[Dim] = []
        for dim in tensor.shape.dim:
            if dim.HasField("dim_value"):
                dims.append(dim.dim_value)
            else:
                dims.append(dim.dim_param if dim.dim_param in (BATCH, TOKENS) else None)
        found[value.name] = TokenTensor(dtype_name(tensor.elem_type), tuple(dims))
    return found
