"""The model of tests/tiny.py as one ONNX file, so that the planner can cut it wherever it likes."""

from pathlib import Path

from onnx import TensorProto, helper, numpy_helper, save

from contract.plan import Plan
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportOptions, import_model
from planner.request import PlanRequest
from tests.planner.conftest import flops_profile
from tests.tiny import CLASSES, HEIGHT, WIDTH, tiny_weights


def write_layered(path: Path, seed: int = 0) -> Path:
    """Flatten, then three times MatMul and Relu; float32 (batch, 1, 2, 3) in, logits out."""
    nodes = [helper.make_node("Flatten", ["x"], ["flat"], axis=1)]
    before = "flat"
    for index in range(3):
        after = ("hidden_0", "hidden_1", "logits")[index]
        nodes.append(helper.make_node("MatMul", [before, f"weight_{index}"], [f"product_{index}"]))
        nodes.append(helper.make_node("Relu", [f"product_{index}"], [after]))
        before = after
    graph = helper.make_graph(
        nodes,
        "layered",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 1, HEIGHT, WIDTH))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", CLASSES))],
        [
            numpy_helper.from_array(weight, f"weight_{index}")
            for index, weight in enumerate(tiny_weights(seed))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, path)
    return path


def build_layered(folder: Path, name: str = "layered", seed: int = 0, stages: int = 3) -> Plan:
    """A plan of that model below ``folder``; it answers as :func:`tests.tiny.tiny_answer`."""
    file = write_layered(folder / "models" / f"{name}.onnx", seed)
    imported = import_model(str(file), ImportOptions(mean=(0.0,), std=(1.0,)))
    graph = segment_graph(canonicalise(imported))
    request = PlanRequest(
        name=name,
        out_dir=folder,
        cuts=("hidden_0", "hidden_1")[: stages - 1],
        batch_size=8,
        profile=flops_profile(graph),
        refine=False,
    )
    return build_plan(imported, graph, request)
