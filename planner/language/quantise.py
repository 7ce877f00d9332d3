"""Replaces products with weights by MatMulNBits: whole numbers of 8 or 4 bits in blocks.

Decoding reads every weight for every token, so memory bandwidth bounds it and smaller weights are
faster. Embeddings stay float32: one row of them is read for a token.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from onnx import NodeProto, helper

from contract.decoder import Quantisation
from planner.language.blocks import BLOCK_SIZE, QUANTISED, SCALES
from planner.language.parameters import Parameter

BITS: Mapping[Quantisation, Literal[4, 8]] = {"int8": 8, "int4": 4}
ACTIVATIONS_AS_INT8 = 4
"""MatMulNBits' `accuracy_level`: activations as int8 with a scale for each block, too. Without it
onnxruntime 1.23 has no kernel for int8 and unpacks all weights for every token: 12 ms for a matrix
of 768 x 3072, against 0.17 (0.61 in float32); for int4 0.30 against 0.11. The error it adds is that
of int8 weights, a tenth of that of int4."""
MIN_ELEMENTS = BLOCK_SIZE * BLOCK_SIZE
"""Smaller matrices gain nothing."""


def quantise_products(
    nodes: list[NodeProto], parameters: dict[str, Parameter], quantisation: Quantisation
) -> None:
    """Quantise the weights of every ``MatMul`` and ``Gemm`` that has one, in place.

    Transposed parameters are already stored so.
    """
    bits = BITS[quantisation]
    changed: list[NodeProto] = []
    for node in nodes:
        name = node.input[1] if len(node.input) > 1 else ""
        parameter = parameters.get(name)
        if node.op_type not in ("MatMul", "Gemm") or parameter is None:
            changed.append(node)
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("transB", 0):
            parameter = replace(parameter, transposed=not parameter.transposed)
            name = f"{name}/transposed"
        plain = not attributes.get("transA", 0) and {
            attributes.get("alpha", 1.0),
            attributes.get("beta", 1.0),
        } == {1.0}
        if not plain or parameter.spec.shape[0] * parameter.spec.shape[1] < MIN_ELEMENTS:
            changed.append(node)
            continue
        changed += _product(node, name, parameter, bits, parameters)
    nodes[:] = changed


def _product(
    node: NodeProto,
    name: str,
    parameter: Parameter,
    bits: Literal[4, 8],
    parameters: dict[str, Parameter],
) -> list[NodeProto]:
    """The same product with the weight in parts, and the sum with a bias after it."""
    inputs, outputs = parameter.spec.shape
    parts = [f"{name}/{QUANTISED}", f"{name}/{SCALES}"]
    for part_name, part in zip(parts, (QUANTISED, SCALES), strict=True):
        parameters[part_name] = replace(parameter, part=part, bits=bits)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    target = f"{node.output[0]}/product" if has_bias else node.output[0]
    product = helper.make_node(
        "MatMulNBits",
        [node.input[0], *parts],
        [target],
        name=target,
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=BLOCK_SIZE,
        accuracy_level=ACTIVATIONS_AS_INT8,
    )
    if not has_bias:
        return [product]
    total = helper.make_node("Add", [target, node.input[2]], node.output[:1], name=node.output[0])
    return [product, total]
