"""Counts floating-point operations of a node from the shapes of its tensors. Pure."""

import math
from collections.abc import Mapping

from onnx import NodeProto

Shape = tuple[int, ...]


def node_flops(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Operations for one image: two for each multiply-accumulate of convolutions and matrix
    products, one for each output element of anything else.

    Args:
        node: any ONNX node.
        shapes: of the tensors it reads and writes, at a batch of one.
    """
    output_elements = sum(math.prod(shapes[name]) for name in node.output if name in shapes)
    known = [shapes.get(name) for name in node.input]
    if len(known) < 2 or known[0] is None or known[1] is None:
        return output_elements
    first, second = known[0], known[1]
    match node.op_type:
        case "Conv":  # weights (M, C / group, kernel…)
            return 2 * output_elements * math.prod(second[1:])
        case "ConvTranspose":  # weights (C, M / group, kernel…)
            return 2 * math.prod(first) * math.prod(second[1:])
        case "MatMul" | "MatMulNBits":  # (…, K) by (K, …), or by the same in blocks
            return 2 * output_elements * first[-1]
        case "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            return 2 * output_elements * first[0 if transposed else 1]
        case "Einsum":
            return _einsum_flops(node, known) or output_elements
        case _:
            return output_elements


def _einsum_flops(node: NodeProto, known: list[Shape | None]) -> int:
    """Two for each combination of all indices; 0 where the equation uses an ellipsis."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
    terms = equation.partition("->")[0].replace(" ", "").split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, known, strict=True):
        if shape is None or len(term) != len(shape) or "." in term:
            return 0
        sizes.update(zip(term, shape, strict=True))
    return 2 * math.prod(sizes.values())
