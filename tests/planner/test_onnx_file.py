"""A path to an `.onnx` file: what is read from it, what is made of it, what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from contract.errors import ModelError
from contract.plan import ImageInput, TensorInput
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportedModel, ImportOptions, import_model
from planner.request import PlanRequest
from planner.verify import run_shards, verification_batch
from planner.whole import open_whole

Make = Callable[..., Path]


def convolutions(
    input_shape: list[int | str],
    dtype: int = TensorProto.FLOAT,
    opset: int = 17,
    reshape: tuple[int, ...] = (0, -1),
    inputs: int = 1,
) -> ModelProto:
    """Conv, Relu, Reshape, Gemm on an 8x8 input of any number of channels; 5 outputs."""
    generator = np.random.default_rng(0)
    channels = int(input_shape[1])

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)

    nodes = [helper.make_node("Cast", ["in"], ["x"], to=TensorProto.FLOAT)]
    if inputs == 2:
        nodes.append(helper.make_node("Add", ["x", "in2"], ["x2"]))
    nodes += [
        helper.make_node("Conv", ["x2" if inputs == 2 else "x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "g", "b"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, dtype, input_shape)
            for name in ("in", "in2")[:inputs]
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [input_shape[0], 5])],
        [
            weight("w", 6, channels, 3, 3),
            weight("g", 6 * 64, 5),
            weight("b", 5),
            numpy_helper.from_array(np.array(reshape), "shape"),
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(*args: object, **kwargs: object) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(convolutions(*args, **kwargs), path)  # type: ignore[arg-type]
        return path

    return write


def check_split(imported: ImportedModel, folder: Path) -> None:
    """In as many stages as there are, against the file itself in numpy's hands."""
    graph = segment_graph(canonicalise(imported))
    plan = build_plan(imported, graph, PlanRequest("m", folder / "out", cuts=graph.cut_names))
    assert plan.num_stages >= 3
    assert plan.verification.conclusive
    batch = verification_batch(imported.input, graph.model.inputs[0])
    actual = run_shards(folder / "out" / "m", plan, batch, threads=1, batch_size=3)
    if isinstance(imported.input, ImageInput) and graph.model.prefix_nodes:
        mean, std = (
            np.array(v).reshape(1, -1, 1, 1) for v in (imported.input.mean, imported.input.std)
        )
        batch = ((batch / 255 - mean) / std).astype(np.float32)
    original = onnx.load(imported.graph_path)
    (expected,) = ReferenceEvaluator(original).run(None, {"in": batch})
    np.testing.assert_allclose(actual["out"], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_any_batch_dimension_becomes_a_variable_one(
    make: Make, batch: int | str, tmp_path: Path
) -> None:
    imported = import_model(str(make([batch, 3, 8, 8])))
    assert isinstance(imported.input, ImageInput)
    assert imported.input.mean == (0.485, 0.456, 0.406)
    assert imported.reference_name.startswith("onnxruntime ")
    check_split(imported, tmp_path)


def test_a_grey_image_has_one_channel(make: Make, tmp_path: Path) -> None:
    imported = import_model(str(make(["N", 1, 8, 8])))
    assert isinstance(imported.input, ImageInput)
    assert imported.input.channels == 1
    check_split(imported, tmp_path)


def test_a_uint8_input_is_an_image_that_normalises_itself(make: Make, tmp_path: Path) -> None:
    imported = import_model(str(make(["N", 3, 8, 8], dtype=TensorProto.UINT8)))
    assert isinstance(imported.input, ImageInput)
    np.testing.assert_allclose(imported.input.std, 1 / 255)
    check_split(imported, tmp_path)


@pytest.mark.parametrize(("channels", "preprocess"), [(3, "none"), (5, "auto")])
def test_anything_else_is_fed_as_it_is(
    make: Make, channels: int, preprocess: str, tmp_path: Path
) -> None:
    options = ImportOptions(preprocess=preprocess)  # type: ignore[arg-type]
    imported = import_model(str(make(["N", channels, 8, 8])), options)
    assert isinstance(imported.input, TensorInput)
    check_split(imported, tmp_path)


def test_external_data_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        convolutions(["N", 3, 8, 8]),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=100,
    )
    assert (tmp_path / "weights.bin").is_file()
    check_split(import_model(str(path)), tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="external data is missing"):
        import_model(str(path))


def test_equal_weights_become_one(tmp_path: Path) -> None:
    model = convolutions(["N", 3, 8, 8])
    graph = model.graph
    again = TensorProto()
    again.CopyFrom(next(tensor for tensor in graph.initializer if tensor.name == "w"))
    again.name = "w_again"
    graph.initializer.append(again)
    nodes = [
        helper.make_node("Conv", ["x", "w_again"], ["c2"], pads=[1] * 4),
        helper.make_node("Add", ["c", "c2"], ["twice"]),
    ]
    relu = next(node for node in graph.node if node.op_type == "Relu")
    relu.input[0] = "twice"
    for node in reversed(nodes):
        graph.node.insert(2, node)
    onnx.save(model, tmp_path / "m.onnx")
    canonical = canonicalise(import_model(str(tmp_path / "m.onnx")))
    assert set(canonical.weights) == {"w", "g"}
    batch = verification_batch(canonical.info.input, canonical.inputs[0])
    imported = import_model(str(tmp_path / "m.onnx"))
    answer = open_whole(canonical, threads=1).run({"image": batch})["out"]
    np.testing.assert_allclose(answer, imported.reference(batch)["out"], rtol=1e-4, atol=1e-4)


def test_an_old_opset_is_converted(make: Make, tmp_path: Path) -> None:
    imported = import_model(str(make(["N", 3, 8, 8], opset=11)))
    check_split(imported, tmp_path)


def test_a_variable_image_size_is_fixed_by_an_option(make: Make, tmp_path: Path) -> None:
    path = make(["N", 3, "h", "w"])
    with pytest.raises(ModelError, match="--input HxW"):
        import_model(str(path))
    imported = import_model(str(path), ImportOptions(input_size=(8, 8)))
    check_split(imported, tmp_path)


def test_a_batch_size_inside_the_graph_is_refused(make: Make) -> None:
    with pytest.raises(ModelError, match="cannot run with a variable batch size"):
        import_model(str(make([1, 3, 8, 8], reshape=(1, 384))))


def test_a_batch_that_mixes_its_images_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["in", "axes"], ["sum"], keepdims=1),
            helper.make_node("Sub", ["in", "sum"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 6])],
        [numpy_helper.from_array(np.array([0]), "axes")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="a batch of two differs"):
        import_model(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ImportOptions(weights="random"), "brings its own weights"),
        (ImportOptions(num_classes=10), "cannot be changed by --num-classes"),
        (ImportOptions(input_size=(9, 9)), "made for .*8, 8"),
        (ImportOptions(mean=(0.5,)), "mean has 1 values"),
    ],
)
def test_options_that_a_file_cannot_follow_are_refused(
    make: Make, options: ImportOptions, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        import_model(str(make(["N", 3, 8, 8])), options)


def test_two_inputs_are_refused(make: Make) -> None:
    with pytest.raises(ModelError, match=r"one input, got 2 \(in, in2\)"):
        import_model(str(make(["N", 3, 8, 8], inputs=2)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"this is not protobuf at all, it is a sentence", "cannot be read as ONNX"),
    ],
)
def test_a_file_that_is_no_onnx_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        import_model(str(path))


def test_a_truncated_file_is_refused(make: Make) -> None:
    path = make(["N", 3, 8, 8])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        import_model(str(path))
