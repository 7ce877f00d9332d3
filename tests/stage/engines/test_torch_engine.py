"""The torch engine on whole models, cut into stages, and when something is wrong."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from contract.errors import EngineError
from contract.tensor_spec import Tensors
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportOptions, import_model
from planner.importers.torchvision_models import import_models
from planner.profiler import Profile
from planner.request import PlanRequest
from planner.sample_inputs import sample_images
from shards.reader import Shard, read_shard
from stage.engine import load_engine
from stage.engines.torch_eager import TorchEngine
from tests.tiny import make_tiny_plan, tiny_answer

ShardOf = Callable[[ModelProto], Shard]
ROWS = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 6])
ANSWER = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 6])


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def model_of(*nodes: Any, opset: int = 20, **weights: np.ndarray) -> ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "graph", [ROWS], [ANSWER], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def rows(batch_size: int) -> np.ndarray:
    values = np.random.default_rng(batch_size).standard_normal((batch_size, 6))
    return values.astype(np.float32)


def small_swin() -> torch.nn.Module:
    """Rolling masked windows, attention, and shapes that every stage computes anew."""
    models = import_models()  # torchvision alone cannot be imported beside a CPU build of torch

    module = models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10)
    assert isinstance(module, torch.nn.Module)
    return module


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("torchvision:mobilenet_v2", 224),
        ("torchvision:shufflenet_v2_x0_5", 64),
        (f"{__name__}:small_swin", 64),
    ],
)
def test_stages_agree_with_onnxruntime(spec: str, size: int, tmp_path: Path) -> None:
    name = spec.split(":")[1]
    imported = import_model(spec, ImportOptions(weights="random", input_size=(size, size)))
    graph = segment_graph(canonicalise(imported))
    cuts = tuple(graph.cut_names[len(graph.cut_names) * part // 3] for part in (1, 2))
    unmeasured = Profile((1.0,) * graph.num_segments, graph.num_segments, 1, 1, 1)
    plan = build_plan(
        imported, graph, PlanRequest(name, tmp_path, cuts=cuts, profile=unmeasured, refine=False)
    )
    shards = [
        read_shard(tmp_path / name / stage.folder, plan, stage.stage_index) for stage in plan.stages
    ]
    images = sample_images(3, 3, size, size, seed=1)
    answers: dict[str, list[np.ndarray]] = {}
    for engine_name, prepack in (("onnxruntime", True), ("torch", True), ("torch", False)):
        engines = [load_engine(engine_name, shard, 1, prepack) for shard in shards]
        for batch in (images, images[:1]):
            tensors: Tensors = {"image": batch}
            for engine in engines:
                tensors = engine.run(tensors)
            answers.setdefault(engine_name, []).extend(tensors.values())
    three, one = answers["onnxruntime"]
    largest = np.abs(three).max()
    assert largest >= 1e-3
    assert np.ptp(three, axis=0).max() >= 1e-2 * largest
    for answer, expected in zip(answers["torch"], [three, one] * 2, strict=True):
        np.testing.assert_allclose(answer, expected, atol=1e-4 * largest, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_read_only_inputs_are_left_alone_and_answers_repeat(
    batch_size: int, tmp_path: Path
) -> None:
    plan = make_tiny_plan(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 1, 2, 3), dtype=np.uint8)
    before = images.copy()
    answers = []
    for _ in range(2):
        tensors: Any = {"image": images}
        for stage in plan.stages:
            shard = read_shard(tmp_path / plan.name / stage.folder, plan, stage.stage_index)
            engine = load_engine("torch", shard, threads=1)
            assert (engine.name, engine.version) == ("torch", torch.__version__)
            for array in tensors.values():
                array.flags.writeable = False
            tensors = engine.run(tensors)
            engine.close()
        answers.append(tensors["logits"])
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(*answers)
    np.testing.assert_allclose(answers[0], tiny_answer(images), rtol=1e-5, atol=1e-6)


def test_batches_may_be_strided_views(shard_of: ShardOf) -> None:
    shard = shard_of(model_of(helper.make_node("Relu", ["rows"], ["answer"])))
    engine = TorchEngine(shard, threads=1, prepack=True)
    view = rows(6)[::-2]
    np.testing.assert_array_equal(engine.run({"rows": view})["answer"], np.maximum(view, 0))


def test_an_output_is_not_the_input(shard_of: ShardOf) -> None:
    shard = shard_of(model_of(helper.make_node("Identity", ["rows"], ["answer"])))
    batch = rows(3)
    answer = TorchEngine(shard, threads=1, prepack=True).run({"rows": batch})["answer"]
    assert not np.shares_memory(answer, batch)


def test_weights_stay_mapped_without_prepack(shard_of: ShardOf, tmp_path: Path) -> None:
    weight = np.eye(6, dtype=np.float32).reshape(6, 6, 1, 1).repeat(256, axis=3)
    nodes = [
        helper.make_node("Unsqueeze", ["rows", "axes"], ["columns"]),
        helper.make_node("Expand", ["columns", "shape"], ["image"]),
        helper.make_node("Conv", ["image", "weight"], ["filtered"]),
        helper.make_node("Flatten", ["filtered"], ["answer"]),
    ]
    shape = np.array([1, 6, 1, 256])
    shard = shard_of(model_of(*nodes, weight=weight, axes=np.array([2, 3]), shape=shape))
    maps = Path("/proc/self/maps")
    engine = TorchEngine(shard, threads=1, prepack=False)
    np.testing.assert_allclose(engine.run({"rows": rows(3)})["answer"], rows(3) * 256, rtol=1e-5)
    if maps.exists():
        assert str(shard.weights_path) in maps.read_text()
    engine.close()
    if maps.exists():
        assert str(shard.weights_path) not in maps.read_text()


def test_threads_are_those_asked_for(shard_of: ShardOf) -> None:
    shard = shard_of(model_of(helper.make_node("Relu", ["rows"], ["answer"])))
    one, two = (TorchEngine(shard, threads=n, prepack=True) for n in (1, 2))
    for engine, threads in ((one, 1), (two, 2), (one, 1)):
        engine.run({"rows": rows(1)})
        assert torch.get_num_threads() == threads


def refused(shard: Shard) -> str:
    with pytest.raises(EngineError) as caught:
        TorchEngine(shard, threads=1, prepack=True)
    return str(caught.value)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (helper.make_node("Hardmax", ["rows"], ["answer"], name="h"), "no operator Hardmax"),
        (
            helper.make_node("Gelu", ["rows"], ["answer"], name="h", domain="com.microsoft"),
            "no operator com.microsoft.Gelu",
        ),
        (
            helper.make_node("Resize", ["rows", "", "s"], ["answer"], name="h", mode="cubic"),
            "mode='cubic'",
        ),
        (
            helper.make_node("MaxPool", ["rows"], ["answer", "i"], name="h", kernel_shape=[1]),
            "2 outputs",
        ),
        (helper.make_node("Relu", ["rows"], ["answer"], name="h", slope=1.0), "'slope'"),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else "",
)
def test_what_cannot_run_is_refused_when_loading(
    node: Any, expected: str, shard_of: ShardOf
) -> None:
    message = refused(shard_of(model_of(node, s=np.float32([1, 2]))))
    assert "node 'h'" in message
    assert node.op_type in message
    assert expected in message
    assert "use --engine onnxruntime" in message


def test_an_old_opset_is_refused(shard_of: ShardOf) -> None:
    node = helper.make_node("Softmax", ["rows"], ["answer"])
    assert "opset 13 or newer" in refused(shard_of(model_of(node, opset=11)))


@pytest.mark.parametrize(
    ("inputs", "output"), [(["nowhere"], "answer"), (["rows"], "other")], ids=["input", "output"]
)
def test_a_graph_with_a_loose_end_is_refused(
    inputs: list[str], output: str, shard_of: ShardOf
) -> None:
    assert "nothing computes" in refused(
        shard_of(model_of(helper.make_node("Relu", inputs, [output])))
    )


def test_a_file_that_is_no_graph_is_refused(shard_of: ShardOf) -> None:
    shard = shard_of(model_of(helper.make_node("Relu", ["rows"], ["answer"])))
    shard.graph_path.write_bytes(b"\xff\xff\xff")
    assert str(shard.graph_path) in refused(shard)


@pytest.mark.parametrize(
    ("key", "value"), [("location", "../secret"), ("offset", "9000"), ("length", "-5")]
)
def test_weights_outside_the_weights_file_are_refused(
    key: str, value: str, shard_of: ShardOf
) -> None:
    node = helper.make_node("MatMul", ["rows", "weight"], ["answer"])
    model = model_of(node, weight=np.eye(6, dtype=np.float32))
    shard = shard_of(model)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    shard.graph_path.write_bytes(model.SerializeToString())
    assert "weight" in refused(shard)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"other": rows(1)},
        {"rows": rows(1).astype(np.float64)},
        {"rows": rows(1)[:, :5]},
        {"rows": rows(1)[0]},
    ],
    ids=["missing", "misnamed", "dtype", "shape", "rank"],
)
def test_a_wrong_input_is_an_error_and_the_engine_goes_on(
    inputs: dict[str, np.ndarray], shard_of: ShardOf
) -> None:
    shard = shard_of(model_of(helper.make_node("Relu", ["rows"], ["answer"])))
    engine = TorchEngine(shard, threads=1, prepack=True)
    with pytest.raises(EngineError, match="rows"):
        engine.run(inputs)
    np.testing.assert_array_equal(engine.run({"rows": rows(3)})["answer"], np.maximum(rows(3), 0))


def test_a_failing_batch_is_an_error_and_the_engine_goes_on(shard_of: ShardOf) -> None:
    node = helper.make_node("Reshape", ["rows", "shape"], ["answer"], name="only_one_image")
    shard = shard_of(model_of(node, shape=np.array([1, 6])))
    engine = TorchEngine(shard, threads=1, prepack=True)
    with pytest.raises(EngineError, match=r"only_one_image.*Reshape.*\(3, 6\)"):
        engine.run({"rows": rows(3)})
    np.testing.assert_array_equal(engine.run({"rows": rows(1)})["answer"], rows(1))
