"""Brings a decoder's operators into the form that onnxruntime fuses when it loads a graph. Pure."""

from collections import Counter

from onnx import NodeProto, helper

from planner.onnx_graph import node_inputs


def divide(nodes: list[NodeProto]) -> None:
    """x * (1 / s) as x / s, in place.

    torch exports RMSNorm with a reciprocal square root; onnxruntime knows the norm, which is then
    one kernel instead of seven, by its division.
    """
    uses = Counter(name for node in nodes for name in node_inputs(node))
    inverse_of = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type == "Reciprocal" and uses[node.output[0]] == 1
    }
    for index, node in enumerate(nodes):
        if node.op_type != "Mul":
            continue
        for factor, inverse in (node.input, reversed(node.input)):
            if inverse in inverse_of:
                inputs = [factor, inverse_of[inverse]]
                nodes[index] = helper.make_node("Div", inputs, node.output[:1], name=node.name)
                break
