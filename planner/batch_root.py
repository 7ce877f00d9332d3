"""Rewrites everything that is computed from shapes so that it follows from one value: the batch.

Exported graphs carry sizes from the input to distant reshapes. Left alone, such an edge would
forbid every cut between. All dimensions but the batch are fixed, so any shape is a function of the
batch size, and each stage can read that from its own input. The one node that reads it is the root.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from planner.probe import ProbedTensor

ROOT = "shardline/batch_size"
"""Name of the tensor, int64 (1,), that all shape arithmetic starts from."""

TOKENS_ROOT = "shardline/num_tokens"
"""The same of how many tokens a step has, where a model takes tokens."""
ROOTS = (ROOT, TOKENS_ROOT)


def tokens_root_node(input_name: str) -> NodeProto:
    """Reads the number of tokens from the second dimension of a stage's input."""
    return helper.make_node("Shape", [input_name], [TOKENS_ROOT], start=1, end=2)


def root_node(input_name: str) -> NodeProto:
    """Reads the batch size from the leading dimension of a stage's input."""
    return helper.make_node("Shape", [input_name], [ROOT], start=0, end=1)


def rewrite_shapes(
    nodes: Sequence[NodeProto], probed: Mapping[str, ProbedTensor]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Replace each ``Shape`` and ``Size`` by arithmetic on the root, wherever its dimensions obey.

    Returns:
        The nodes (the root's own not among them), and the constants that they need.
    """
    rewritten: list[NodeProto] = []
    constants: dict[tuple[int, ...], TensorProto] = {}

    def constant(*values: int) -> str:
        if values not in constants:
            name = "shardline/shape_" + "_".join(map(str, values))
            constants[values] = numpy_helper.from_array(np.array(values, np.int64), name)
        return constants[values].name

    def multiple_of_batch(factor: int, output: str) -> NodeProto:
        return helper.make_node("Mul", [ROOT, constant(factor)], [output])

    for node in nodes:
        dims = _wanted_dims(node, probed)
        if dims is None:
            rewritten.append(node)
            continue
        output = node.output[0]
        if node.op_type == "Size":
            factor = int(np.prod([size for size, _ in dims], dtype=np.int64))
            depends = sum(power for _, power in dims)
            if depends > 1:
                rewritten.append(node)
                continue
            vector = f"{output}/vector"
            if depends:
                rewritten.append(multiple_of_batch(factor, vector))
            else:
                rewritten.append(helper.make_node("Identity", [constant(factor)], [vector]))
            rewritten.append(helper.make_node("Squeeze", [vector], [output]))
            continue
        parts: list[str] = []
        fixed: list[int] = []
        for index, (size, power) in enumerate(dims):
            if not power:
                fixed.append(size)
                continue
            if fixed:
                parts.append(constant(*fixed))
                fixed = []
            if size == 1:
                parts.append(ROOT)
            else:
                rewritten.append(multiple_of_batch(size, f"{output}/{index}"))
                parts.append(f"{output}/{index}")
        if fixed or not parts:
            parts.append(constant(*fixed))
        if len(parts) == 1:
            rewritten.append(helper.make_node("Identity", parts, [output]))
        else:
            rewritten.append(helper.make_node("Concat", parts, [output], axis=0))
    return rewritten, list(constants.values())


def _wanted_dims(
    node: NodeProto, probed: Mapping[str, ProbedTensor]
) -> list[tuple[int, int]] | None:
    """The dimensions that a shape-reading node gives; None for other nodes and other shapes."""
    if node.op_type not in ("Shape", "Size") or node.domain not in ("", "ai.onnx"):
        return None
    if node.input[0] not in probed:
        return None
    limits = {attribute.name: attribute.i for attribute in node.attribute}
    rank = len(probed[node.input[0]].dims)
    dims = probed[node.input[0]].dims[limits.get("start", 0) : limits.get("end", rank)]
    known = [dim for dim in dims if dim is not None]
    return known if len(known) == len(dims) else None
