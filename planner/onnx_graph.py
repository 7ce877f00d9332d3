"""Reading and tidying ONNX graphs: what nodes use, what is dead, what is large. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from contract.tensor_spec import BATCH, DType, TensorSpec
from shards.manifest import WEIGHTS_FILE
from shards.writer import ByteRange

Array = npt.NDArray[Any]
EXTERNAL_BYTES = 128
"""Float initialisers of at least this size leave the graph for the weights file.

Smaller ones, scalars and integers (shapes, axes, indices) stay: shape inference reads them.
"""
IR_VERSION = 10  # the newest that onnxruntime 1.23 loads


def node_inputs(node: NodeProto) -> list[str]:
    """Names of the tensors that a node reads, those captured by its sub-graphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for subgraph in (attribute.g, *attribute.graphs):
            if subgraph.node:
                names.extend(_captured(subgraph))
    return list(dict.fromkeys(names))


def _captured(graph: GraphProto) -> Iterator[str]:
    local = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        yield from (name for name in node_inputs(node) if name not in local)
        local.update(node.output)
    yield from (output.name for output in graph.output if output.name not in local)


def rename_tensors(nodes: Iterable[NodeProto], new_names: Mapping[str, str]) -> None:
    """Make ``nodes``, and the sub-graphs in them, read other tensors, in place."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in new_names:
                node.input[index] = new_names[name]
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                rename_tensors(subgraph.node, new_names)


def live_nodes(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that some output depends on, in the same (topological) order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node_inputs(node))
    return kept[::-1]


def is_external(dtype: np.dtype[Any], shape: Sequence[int]) -> bool:
    """Whether an initialiser belongs into the weights file."""
    size_bytes = int(np.prod(shape)) * dtype.itemsize
    return dtype.kind == "f" and len(shape) >= 1 and size_bytes >= EXTERNAL_BYTES


def external_tensor(
    name: str, dtype: np.dtype[Any], shape: Sequence[int], place: ByteRange
) -> TensorProto:
    """An initialiser whose bytes lie in the weights file beside the graph."""
    tensor = TensorProto(
        name=name,
        data_type=helper.np_dtype_to_tensor_dtype(dtype),
        dims=shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (
        ("location", WEIGHTS_FILE),
        ("offset", str(place.offset)),
        ("length", str(place.length)),
    ):
        tensor.external_data.add(key=key, value=value)
    return tensor


def value_info(spec: TensorSpec) -> ValueInfoProto:
    """A graph input or output of this spec."""
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, data_type, spec.shape)


def read_spec(value: ValueInfoProto) -> TensorSpec | None:
    """The spec of a graph input or output; None unless it is a tensor of known dimensions."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    shape: list[int | str] = []
    for dim in tensor.shape.dim:
        if dim.dim_param == BATCH:
            shape.append(BATCH)
        elif dim.HasField("dim_value"):
            shape.append(dim.dim_value)
        else:
            return None
    dtype = dtype_name(tensor.elem_type)
    return (
        None
        if dtype is None
        else TensorSpec.model_validate({"name": value.name, "dtype": dtype, "shape": tuple(shape)})
    )


def dtype_name(data_type: int) -> DType | None:
    """numpy's name of an ONNX element type; None where a message could not carry it."""
    names: dict[int, DType] = {
        TensorProto.UINT8: "uint8",
        TensorProto.INT8: "int8",
        TensorProto.INT32: "int32",
        TensorProto.INT64: "int64",
        TensorProto.FLOAT16: "float16",
        TensorProto.FLOAT: "float32",
        TensorProto.DOUBLE: "float64",
        TensorProto.BOOL: "bool",
    }
    return names.get(data_type)


def make_model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    initializers: Sequence[TensorProto],
    opsets: Mapping[str, int],
) -> ModelProto:
    """A model of these parts that names only the operator sets its nodes use."""
    used = set(_domains(nodes))
    graph = helper.make_graph(
        nodes,
        "graph",
        [value_info(spec) for spec in inputs],
        [value_info(spec) for spec in outputs],
        initializers,
    )
    return helper.make_model(
        graph,
        ir_version=IR_VERSION,
        producer_name="shardline",
        opset_imports=[
            helper.make_opsetid(domain, version)
            for domain, version in sorted(opsets.items())
            if domain in used or domain == ""
        ],
    )


def _domains(nodes: Iterable[NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield "" if node.domain == "ai.onnx" else node.domain
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _domains(subgraph.node)


def to_bytes(model: ModelProto) -> bytes:
    """Serialise; equal models give equal bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def read_opsets(model: ModelProto) -> dict[str, int]:
    """Version by domain; the ONNX domain is the empty string."""
    return {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version
        for entry in model.opset_import
    }


def load_graph(path: object) -> ModelProto:
    """Read a graph without its external data."""
    return onnx.load(str(path), load_external_data=False)
