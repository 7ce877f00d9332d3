"""Where the graph may be cut, on graphs small enough to see, and the counts for known models."""

import numpy as np
import pytest
from onnx import NodeProto, helper

from planner.batch_root import ROOT
from planner.devices.board_estimates import ModelFacts
from planner.devices.boards import model_facts
from planner.devices.published import FLOPS_PER_IMAGE
from planner.flops import node_flops
from planner.graph import needed_constants, single_live_tensors, split_derived
from tests.planner.conftest import Cached


def node(op: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def cuts(nodes: list[NodeProto], outputs: str = "out") -> list[str]:
    body, _ = split_derived(nodes, "in")
    return [name for _, name in single_live_tensors(body, "in", outputs.split())]


def test_a_chain_can_be_cut_everywhere_but_at_its_ends() -> None:
    chain = [node("Relu", "in", "a"), node("Conv", "a w", "b"), node("Relu", "b", "out")]
    assert cuts(chain) == ["a", "b"]


def test_a_residual_block_is_not_cut_inside() -> None:
    block = [
        node("Relu", "in", "x"),
        node("Conv", "x w1", "a"),
        node("Conv", "a w2", "b"),
        node("Add", "b x", "sum"),
        node("Relu", "sum", "out"),
    ]
    assert cuts(block) == ["x", "sum"]


def test_a_skip_from_the_input_counts_the_input_as_live() -> None:
    assert (
        cuts([node("Conv", "in w", "a"), node("Relu", "a", "b"), node("Add", "b in", "out")]) == []
    )


def test_parallel_branches_are_not_cut_apart() -> None:
    branches = [
        node("Conv", "in w1", "a"),
        node("Conv", "in w2", "b"),
        node("Concat", "a b", "joined", axis=1),
        node("Relu", "joined", "out"),
    ]
    assert cuts(branches) == ["joined"]


def test_two_outputs_end_the_cuts_at_the_first() -> None:
    heads = [
        node("Relu", "in", "a"),
        node("Gemm", "a w1", "first"),
        node("Relu", "a", "b"),
        node("Gemm", "b w2", "second"),
    ]
    assert cuts(heads, "first second") == ["a"]


def test_the_order_of_the_nodes_does_not_matter() -> None:
    nodes = [
        node("Relu", "in", "x"),
        node("Conv", "x w1", "a"),
        node("Conv", "x w2", "b"),
        node("Add", "a b", "sum"),
        node("Relu", "sum", "out"),
    ]
    other = [nodes[0], nodes[2], nodes[1], *nodes[3:]]
    assert cuts(nodes) == cuts(other) == ["x", "sum"]


def test_what_follows_from_the_batch_alone_is_not_live() -> None:
    nodes = [
        node("Shape", "in", ROOT, start=0, end=1),
        node("Concat", f"{ROOT} minus_one", "shape", axis=0),
        node("Relu", "in", "a"),
        node("Relu", "a", "b"),
        node("Reshape", "b shape", "out"),
    ]
    assert cuts(nodes) == ["a", "b"]
    body, derived = split_derived(nodes, "in")
    assert set(derived) == {ROOT, "shape"}
    assert needed_constants(body[-1:], derived) == {"b", "shape", ROOT, "minus_one"}


def test_what_a_subgraph_captures_is_live() -> None:
    value = helper.make_tensor_value_info("y", 1, None)
    branch = helper.make_graph([node("Identity", "a", "y")], "then", [], [value])
    nodes = [
        node("Relu", "in", "a"),
        node("ReduceMax", "a", "max", keepdims=0),
        node("Relu", "max", "more"),
        node("If", "more", "out", then_branch=branch, else_branch=branch),
    ]
    assert cuts(nodes) == ["a"]


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "flops"),
    [
        ("Conv", [(1, 64, 56, 56), (128, 32, 3, 3), (1, 128, 28, 28)], {"group": 2}, 57_802_752),
        ("ConvTranspose", [(1, 8, 4, 4), (8, 3, 2, 2), (1, 3, 8, 8)], {}, 2 * 128 * 12),
        ("Gemm", [(1, 2048), (1000, 2048), (1, 1000)], {"transB": 1}, 4_096_000),
        ("Gemm", [(2048, 1), (2048, 10), (1, 10)], {"transA": 1}, 40_960),
        ("MatMul", [(1, 12, 197, 64), (1, 12, 64, 197), (1, 12, 197, 197)], {}, 59_610_624),
        ("Einsum", [(1, 5, 7), (7, 3), (1, 5, 3)], {"equation": "bij,jk->bik"}, 210),
        ("Add", [(1, 5, 7), (1, 5, 7), (1, 5, 7)], {}, 35),
    ],
)
def test_operations_are_counted_from_shapes(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, object], flops: int
) -> None:
    known = dict(zip(("a", "b", "y"), shapes, strict=True))
    assert node_flops(node(op, "a b", "y", **attributes), known) == flops


# As the graphs have them: every chain position, stem to flatten, the model's output not counted.
COUNTS = {
    "mobilenet_v2": 49,
    "resnet18": 21,
    "resnet50": 37,
    "vgg16": 37,
    "alexnet": 19,
    "inception_v3": 25,
    "densenet121": 23,
    "efficientnet_b0": 55,
    "regnet_y_400mf": 36,
    "shufflenet_v2_x1_0": 70,
    "vit_b_16": 31,
    "swin_t": 44,
    "convnext_tiny": 38,
    "googlenet": 21,
}


@pytest.mark.parametrize("torchvision_model", COUNTS, indirect=True)
def test_known_models_have_as_many_cut_points_as_they_should(
    torchvision_model: Cached, request: pytest.FixtureRequest
) -> None:
    name = torchvision_model.imported.name.partition(":")[2]
    graph = torchvision_model.graph
    assert len(graph.cuts) == COUNTS[name]
    assert len(set(graph.cut_names)) == len(graph.cuts)
    assert len(graph.segments) == len(graph.cuts) + 1
    for cut in graph.cuts:
        assert cut.spec.dtype == "float32"
        assert cut.spec.shape[0] == "batch"
        assert "batch" not in cut.spec.shape[1:]


# Published multiply-accumulates, counted twice; activations and additions are a few per cent.
FLOPS = {"resnet18": 2 * 1.814e9, "mobilenet_v2": 2 * 0.301e9, "vgg16": 2 * 15.47e9}


@pytest.mark.parametrize("torchvision_model", FLOPS, indirect=True)
def test_operations_of_known_models_are_right(torchvision_model: Cached) -> None:
    name = torchvision_model.imported.name.partition(":")[2]
    counted = sum(segment.flops_per_image for segment in torchvision_model.graph.segments)
    assert counted == pytest.approx(FLOPS[name], rel=0.03)
    # A published figure is found by the name and the operations together.
    published = ModelFacts(f"torchvision:{name}", FLOPS_PER_IMAGE[name])
    assert model_facts(torchvision_model.graph) == published


@pytest.mark.parametrize("torchvision_model", ["resnet18"], indirect=True)
def test_normalisation_is_part_of_the_first_segment(torchvision_model: Cached) -> None:
    graph = torchvision_model.graph
    first = [n.op_type for n in graph.body[: graph.segments[0].end_node]]
    assert first == ["Cast", "Mul", "Add", "Conv"]
    assert graph.model.inputs[0].describe() == "uint8 (batch, 3, 224, 224)"
    pixels = np.prod([3, 224, 224])
    assert graph.cuts[0].spec.bytes_per_image != 4 * pixels
