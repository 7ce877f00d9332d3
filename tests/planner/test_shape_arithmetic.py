"""Sizes that travel through a graph: recomputed in every stage, never sent, right for any batch."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from planner.batch_root import ROOT, rewrite_shapes, root_node
from planner.onnx_graph import load_graph
from planner.probe import ProbedTensor
from planner.sample_inputs import sample_images
from planner.verify import run_shards
from tests.planner.conftest import Cached


def test_a_model_that_needs_its_batch_size_everywhere_is_cut_everywhere(
    small: Callable[[str], Cached], tmp_path: Path
) -> None:
    model = small("ShapeCarrier")
    names = model.graph.cut_names
    assert len(names) == 12
    plan = model.plan(tmp_path, cuts=names)
    assert plan.num_stages == 13
    for before, after in pairwise(plan.stages):
        assert len(before.outputs) == 1
        assert before.outputs == after.inputs
    for batch_size in (1, 2, 3, 7):
        images = sample_images(7, 3, 32, 32, seed=batch_size)
        expected = model.imported.reference(images)["output"]
        actual = run_shards(tmp_path / "m", plan, images, threads=1, batch_size=batch_size)
        np.testing.assert_allclose(actual["output"], expected, atol=1e-5)


def test_each_stage_reads_the_batch_from_its_own_input(
    small: Callable[[str], Cached], tmp_path: Path
) -> None:
    plan = small("ShapeCarrier").plan(tmp_path, cuts=("tanh_1", "cat"))
    readers = 0
    for stage in plan.stages:
        graph = load_graph(tmp_path / "m" / stage.folder / "graph.onnx").graph
        assert [value.name for value in graph.input] == [stage.inputs[0].name]
        for node in graph.node:
            if ROOT in node.output:
                readers += 1
                assert list(node.input) == [stage.inputs[0].name]
    assert readers == 2  # to expand the token in the middle, and for ones_like in the last stage


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("Shape", {}, lambda b: [b, 3, 4 * b, 7]),
        ("Shape", {"start": 0, "end": 1}, lambda b: [b]),
        ("Shape", {"start": 1, "end": 2}, lambda _: [3]),
        ("Shape", {"start": 1}, lambda b: [3, 4 * b, 7]),
        ("Shape", {"start": -2}, lambda b: [4 * b, 7]),
        ("Shape", {"start": -3, "end": -1}, lambda b: [3, 4 * b]),
        ("Shape", {"end": 0}, lambda _: []),
    ],
)
def test_every_way_to_read_a_shape_is_computed_from_the_batch(
    op: str, attributes: dict[str, int], expected: Callable[[int], list[int]], batch: int
) -> None:
    dims = ((1, 1), (3, 0), (4, 1), (7, 0))
    assert evaluate(op, attributes, dims, batch).tolist() == expected(batch)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_number_of_elements_is_computed_from_the_batch(batch: int) -> None:
    answer = evaluate("Size", {}, ((2, 1), (3, 0), (5, 0)), batch)
    assert answer.shape == ()
    assert answer == 30 * batch
    assert evaluate("Size", {}, ((4, 0), (3, 0)), batch) == 12


def test_shapes_that_depend_on_values_are_left_alone() -> None:
    node = helper.make_node("Shape", ["found"], ["s"])
    nodes, _ = rewrite_shapes([node], {"found": ProbedTensor("int64", (None, (2, 0)))})
    assert nodes == [node]


def evaluate(
    op: str, attributes: dict[str, int], dims: tuple[tuple[int, int] | None, ...], batch: int
) -> np.ndarray:
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    nodes, constants = rewrite_shapes([node], {"x": ProbedTensor("float32", dims)})
    assert op not in {n.op_type for n in nodes}
    graph = helper.make_graph(
        [root_node("in"), *nodes],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert all(numpy_helper.to_array(c).dtype == np.int64 for c in constants)
    (answer,) = ReferenceEvaluator(model).run(None, {"in": np.zeros((batch, 1), np.float32)})
    return np.asarray(answer)
