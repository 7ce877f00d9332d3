"""What a plan's folder holds, what its id depends on, and that a wrong shard is never published."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contract.errors import (
    ModelError,
    PartitionError,
    PlanError,
    SettingsError,
    VerificationError,
)
from contract.plan import Replica, load_plan
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportOptions, import_model
from planner.request import PlanRequest
from planner.verify import run_shards
from planner.whole import open_whole
from shards.reader import read_shard
from shards.weights_file import read_layout
from tests.planner.conftest import SMALL, Cached

Small = Callable[[str], Cached]


def test_the_folder_holds_the_plan_and_verified_shards(small: Small, tmp_path: Path) -> None:
    plan = small("Plain").plan(tmp_path, num_stages=3, batch_size=4)
    assert load_plan(tmp_path / "m") == plan
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "plan.json",
        "stage-0",
        "stage-1",
        "stage-2",
    ]
    for stage in plan.stages:
        shard = read_shard(tmp_path / "m" / stage.folder, plan, stage.stage_index)
        layout = read_layout(shard.weights_path)
        assert sum(entry.length for entry in layout.values()) == stage.weight_bytes
        assert shard.manifest.verified_with["onnxruntime"]
        assert stage.predicted_ms_per_batch
    assert plan.stages[0].inputs[0].describe() == "uint8 (batch, 3, 32, 32)"
    assert plan.stages[-1].outputs[0].describe() == "float32 (batch, 10)"
    assert plan.verification.conclusive
    assert plan.verification.reference.startswith("torch ")
    assert plan.model.labels_mean_something is False


def test_nothing_of_this_machine_is_in_the_shards(small: Small, tmp_path: Path) -> None:
    small("Plain").plan(tmp_path, num_stages=2)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b".py" not in content
            assert str(Path.cwd()).encode() not in content
            assert str(tmp_path).encode() not in content


PLAN_ID = f"""
import sys
from pathlib import Path
from planner.importers import ImportOptions, import_model
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.build import build_plan
from planner.request import PlanRequest
imported = import_model("{SMALL}:Plain", ImportOptions(weights="random", input_size=(32, 32)))
graph = segment_graph(canonicalise(imported))
request = PlanRequest("m", Path(sys.argv[1]), cuts=("relu_1",))
print(build_plan(imported, graph, request).plan_id)
"""


def test_the_plan_id_is_the_same_in_another_process(small: Small, tmp_path: Path) -> None:
    plan = small("Plain").plan(tmp_path / "here", cuts=("relu_1",))
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", PLAN_ID, str(tmp_path / "there")],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == plan.plan_id
    assert run.stderr == ""


def test_the_plan_id_depends_on_cuts_and_weights_and_not_on_batch_or_placement(
    small: Small, tmp_path: Path
) -> None:
    model = small("Plain")
    plan = model.plan(tmp_path, cuts=("relu",))
    assert model.plan(tmp_path, cuts=("relu_1",)).plan_id != plan.plan_id
    devices = ((Replica(device="a"),), (Replica(device="b"), Replica(device="c")))
    placed = model.plan(tmp_path, cuts=("relu",), batch_size=3, devices=devices)
    assert placed.plan_id == plan.plan_id
    assert [len(place.replicas) for place in placed.placement] == [1, 2]
    assert load_plan(tmp_path / "m").topic_map == placed.topic_map
    options = ImportOptions(weights="random", input_size=(32, 32), seed=1)
    imported = import_model(f"{SMALL}:Plain", options)
    graph = segment_graph(canonicalise(imported))
    other = build_plan(imported, graph, PlanRequest("m", tmp_path, cuts=("relu",)))
    assert other.plan_id != plan.plan_id


def test_tied_weights_are_in_both_shards_and_reported(small: Small, tmp_path: Path) -> None:
    model = small("Tied")
    together = model.plan(tmp_path, cuts=("mean",))
    assert together.tied_weights == ()
    apart = model.plan(tmp_path, cuts=("linear_1",))
    assert apart.tied_weights == ("shared.weight",)
    for stage in apart.stages:
        assert "shared.weight" in read_layout(tmp_path / "m" / stage.folder / "weights.safetensors")


def test_several_outputs_arrive_by_name(small: Small, tmp_path: Path) -> None:
    model = small("TwoOutputs")
    plan = model.plan(tmp_path, num_stages=2)
    assert {spec.name for spec in plan.stages[-1].outputs} == {"classes", "boxes"}
    actual = run_shards(tmp_path / "m", plan, model.batch, threads=1, batch_size=2)
    for name, expected in model.expected.items():
        np.testing.assert_allclose(actual[name], expected, atol=1e-5)


def test_a_plan_may_have_one_stage(small: Small, tmp_path: Path) -> None:
    plan = small("Plain").plan(tmp_path, num_stages=1)
    assert plan.num_stages == 1
    assert plan.stages[0].weight_bytes == small("Plain").graph.model.weight_bytes


def test_cuts_may_be_named_in_any_order_and_by_module(small: Small, tmp_path: Path) -> None:
    model = small("Plain")
    plan = model.plan(tmp_path, cuts=("relu_1", "conv2d"))
    assert [stage.outputs[0].name for stage in plan.stages] == ["conv2d", "relu_1", "output"]
    assert model.plan(tmp_path, cuts=("second",)).stages[0].outputs[0].name == "conv2d_1"


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (
            {"cuts": ("relu_11",)},
            PartitionError,
            r"'relu_11' is not a cut point; did you mean .*relu_1",
        ),
        ({"cuts": ("relu_11",)}, PartitionError, "--list-cuts"),
        ({"cuts": ("relu", "relu")}, PartitionError, "'relu' and 'relu' are the same cut point"),
        ({"cuts": ("second", "conv2d_1")}, PartitionError, "are the same cut point"),
        ({"num_stages": 9}, PartitionError, "9 stages need 8 cut points, the model has 7"),
        ({"num_stages": 2, "name": "a/b"}, SettingsError, "plan name 'a/b'"),
        ({"num_stages": 2, "batch_size": 0}, ModelError, "batch size 0"),
        ({"num_stages": 2, "devices": ((Replica(device="a"),),)}, PlanError, "2 stages need"),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(
    small: Small,
    tmp_path: Path,
    request_: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        small("Plain").plan(tmp_path, **request_)
    assert list(tmp_path.iterdir()) == []


def test_shards_that_compute_something_else_are_not_kept(small: Small, tmp_path: Path) -> None:
    model = small("Plain")
    before = model.plan(tmp_path, num_stages=2)

    def wrong(array: np.ndarray) -> dict[str, np.ndarray]:
        answer = {name: value.copy() for name, value in model.expected.items()}
        answer["output"][2, 3] += 2e-4 * np.abs(answer["output"]).max()
        return answer

    broken = replace(model, imported=replace(model.imported, reference=wrong))
    with pytest.raises(VerificationError, match="differ from the whole model"):
        broken.plan(tmp_path, num_stages=3)
    assert load_plan(tmp_path / "m") == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_without_a_profile_everything_is_measured(small: Small, tmp_path: Path) -> None:
    steps: list[str] = []
    plan = small("Plain").plan(
        tmp_path,
        num_stages=2,
        profile=None,
        refine=True,
        progress=lambda step, _: steps.append(step),
    )
    assert all(stage.predicted_ms_per_batch for stage in plan.stages)
    assert list(dict.fromkeys(steps)) == [
        "profiling",
        "deciding",
        "measuring the stages",
        "writing shards",
        "verifying the written shards",
    ]
    by_hand = small("Plain").plan(tmp_path, cuts=("relu",), profile=None)
    assert all(stage.predicted_ms_per_batch for stage in by_hand.stages)


def test_the_whole_model_in_one_session_gives_the_same(small: Small) -> None:
    model = small("Plain")
    whole = open_whole(model.graph.model, threads=1)
    answer = whole.run({"image": model.batch})["output"]
    np.testing.assert_allclose(answer, model.expected["output"], atol=1e-5)


def test_importing_the_pure_parts_loads_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, planner, planner.partition, planner.cost_model, planner.compare, "
        "planner.importers; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
