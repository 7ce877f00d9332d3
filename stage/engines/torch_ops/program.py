"""A graph made ready to run: checked operators in order, constants, and what to free when."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import torch
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto
from torch import Tensor

from contract.errors import EngineError
from shards.reader import Shard
from stage.engines.torch_ops import (  # noqa: F401 (each registers its operators)
    activation,
    arithmetic,
    convolution,
    creation,
    indexing,
    layout,
    linear,
    normalization,
    padding,
    pooling,
    reduction,
    resize,
)
from stage.engines.torch_ops.registry import OPERATORS, Operator, Result
from stage.engines.torch_ops.tensors import WeightFile, tensor_from_graph

DEFAULT_DOMAIN = ("", "ai.onnx")
OLDEST_OPSET = 13
"""Before, Squeeze, Unsqueeze, Split and Softmax meant something else."""

REMEDY = "use --engine onnxruntime"


@dataclass(frozen=True, slots=True)
class Step:
    """One node. ``last_used`` are the values that no later node reads."""

    label: str
    operator: str
    function: partial[Result]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_used: tuple[str, ...]

    def run(self, values: dict[str, Tensor]) -> None:
        """Compute the node's outputs into ``values`` and free what is not needed any more."""
        result = self.function(*[values[name] if name else None for name in self.inputs])
        if isinstance(result, Tensor):
            values[self.outputs[0]] = result
        else:
            values.update(zip(self.outputs, result, strict=False))
        for name in self.last_used:
            del values[name]


class Program:
    """A shard's graph as steps. Holds the constants; a run's values belong to the run."""

    def __init__(self, shard: Shard) -> None:
        model = _load_graph(shard)
        self._where = str(shard.graph_path)
        self._constants = _load_constants(model, shard)
        self.inputs = tuple(v.name for v in model.graph.input if v.name not in self._constants)
        self.outputs = tuple(v.name for v in model.graph.output)
        expected = {spec.name for spec in shard.manifest.inputs}
        if expected != set(self.inputs):
            raise EngineError(
                f"{self._where}: expected inputs {sorted(expected)}, the graph takes "
                f"{sorted(self.inputs)}; build the plan again with `shardline plan`"
            )
        self._steps = self._compile(model.graph.node)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run every step once.

        Raises:
            EngineError: an operator refuses its inputs; names the node.
        """
        values = {**self._constants, **inputs}
        for step in self._steps:
            try:
                step.run(values)
            except Exception as error:  # torch raises RuntimeError, IndexError, TypeError, …
                shapes = [
                    f"{values[name].dtype} {tuple(values[name].shape)}"
                    for name in step.inputs
                    if name in values
                ]
                raise EngineError(
                    f"{self._where}, {step.label}: failed on inputs {shapes}: {error!s:.500}"
                ) from error
        return {name: values[name] for name in self.outputs}

    def prefer_channels_last(self) -> None:
        """Store 2-D convolution weights channels-last; activations then follow by themselves."""
        for step in self._steps:
            name = step.inputs[1] if step.operator == "Conv" else ""
            if name in self._constants and self._constants[name].ndim == 4:
                self._constants[name] = self._constants[name].contiguous(
                    memory_format=torch.channels_last
                )

    def _compile(self, nodes: Sequence[NodeProto]) -> tuple[Step, ...]:
        last_reader = {name: index for index, node in enumerate(nodes) for name in node.input}
        kept = {*self._constants, *self.outputs, ""}
        known = {*self._constants, *self.inputs, ""}
        steps = []
        for index, node in enumerate(nodes):
            if node.op_type == "Constant" and node.domain in DEFAULT_DOMAIN:
                continue
            label = f"node {node.name or index!r} ({node.op_type})"
            missing = [name for name in node.input if name not in known]
            if missing:
                raise EngineError(f"{self._where}, {label}: nothing computes its input {missing}")
            known.update(node.output)
            unread = [name for name in node.output if name and name not in last_reader]
            read_here = [name for name in dict.fromkeys(node.input) if last_reader[name] == index]
            steps.append(
                Step(
                    label,
                    node.op_type,
                    self._bind(node, label),
                    tuple(node.input),
                    tuple(node.output),
                    tuple(name for name in (*read_here, *unread) if name not in kept),
                )
            )
        if missing := [name for name in self.outputs if name not in known]:
            raise EngineError(f"{self._where}: nothing computes the output {missing}")
        return tuple(steps)

    def _bind(self, node: NodeProto, label: str) -> partial[Result]:
        operator = OPERATORS.get(node.op_type) if node.domain in DEFAULT_DOMAIN else None
        if operator is None:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise EngineError(
                f"{self._where}, {label}: the torch engine has no operator {name}; {REMEDY}"
            )
        attributes = _attributes(node, operator)
        refusal = operator.refusal(len(node.input), sum(map(bool, node.output)), attributes)
        if refusal:
            raise EngineError(
                f"{self._where}, {label}: the torch engine cannot run operator {node.op_type} "
                f"this way ({refusal}); {REMEDY}"
            )
        return partial(operator.function, **attributes)


def _load_graph(shard: Shard) -> ModelProto:
    try:
        model = onnx.load(shard.graph_path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, OSError
        raise EngineError(f"{shard.graph_path}: onnx cannot read it: {error!s:.500}") from error
    opset = max((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAIN), default=0)
    if opset < OLDEST_OPSET:
        raise EngineError(
            f"{shard.graph_path}: expected ONNX opset {OLDEST_OPSET} or newer for the torch "
            f"engine, got {opset}; {REMEDY}"
        )
    return model


def _load_constants(model: ModelProto, shard: Shard) -> dict[str, Tensor]:
    constants: dict[str, Tensor] = {}
    weights: WeightFile | None = None
    try:
        for proto in model.graph.initializer:
            if proto.data_location == TensorProto.EXTERNAL:
                weights = weights or WeightFile(shard)
                constants[proto.name] = weights.tensor(proto)
            else:
                constants[proto.name] = tensor_from_graph(proto)
        for node in model.graph.node:
            if node.op_type == "Constant" and node.domain in DEFAULT_DOMAIN:
                constants[node.output[0]] = _constant(node)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise EngineError(f"{shard.folder}: cannot load the weights: {error!s:.500}") from error
    return constants


def _constant(node: NodeProto) -> Tensor:
    value = _attribute_value(node.attribute[0])
    if isinstance(value, Tensor):
        return value
    is_float = node.attribute[0].name.startswith("value_float")
    return torch.tensor(value, dtype=torch.float32 if is_float else torch.int64)


def _attributes(node: NodeProto, operator: Operator) -> dict[str, Any]:
    attributes = {item.name: _attribute_value(item) for item in node.attribute}
    if "output_count" in inspect.signature(operator.function).parameters:
        attributes["output_count"] = len(node.output)
    return attributes


def _attribute_value(attribute: AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return tensor_from_graph(value)
    return list(value) if attribute.type == AttributeProto.INTS else value
