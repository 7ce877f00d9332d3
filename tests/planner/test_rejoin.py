"""A plan's shards make the whole model again, to be cut elsewhere; no original and no torch."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contract.errors import PlanError, ShardHashMismatchError, VerificationError
from contract.plan import Plan
from planner.build import build_plan
from planner.canonical import CanonicalModel
from planner.graph import segment_graph
from planner.rejoin import as_imported, rejoin
from planner.request import PlanRequest
from planner.verify import run_shards
from planner.whole import open_whole
from tests.planner.conftest import Cached, flops_profile
from tests.tiny import make_tiny_plan

Small = Callable[[str], Cached]
MODELS = ["Plain", "Tied", "ShapeCarrier", "TwoOutputs"]


def digest_of(model: CanonicalModel) -> str:
    """As the planner computes it of a model that it has imported."""
    weights = hashlib.sha256((model.shard_path / "weights.safetensors").read_bytes()).hexdigest()
    return hashlib.sha256(model.graph_path.read_bytes() + weights.encode()).hexdigest()


def all_cuts(cached: Cached) -> tuple[str, ...]:
    return cached.graph.cut_names


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_model_computes_what_the_original_does(
    small: Small, tmp_path: Path, name: str
) -> None:
    cached = small(name)
    plan = cached.plan(tmp_path, cuts=all_cuts(cached))  # as many stages as there can be
    model = rejoin(tmp_path / "m", plan)
    answer = open_whole(model, threads=1).run({"image": cached.batch})
    assert set(answer) == set(cached.expected)
    for output, expected in cached.expected.items():
        np.testing.assert_allclose(answer[output], expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_it_has_the_same_segments_as_before(small: Small, tmp_path: Path, name: str) -> None:
    cached = small(name)
    plan = cached.plan(tmp_path, num_stages=2)
    graph = segment_graph(rejoin(tmp_path / "m", plan))
    assert graph.cut_names == cached.graph.cut_names
    assert [s.weight_bytes for s in graph.segments] == [
        s.weight_bytes for s in cached.graph.segments
    ]
    assert graph.model.info == plan.model


def test_without_anything_derived_the_bytes_are_those_that_were_cut(
    small: Small, tmp_path: Path
) -> None:
    plan = small("Plain").plan(tmp_path, num_stages=3)
    assert digest_of(rejoin(tmp_path / "m", plan)) == plan.model.digest


def test_the_same_cuts_make_the_same_plan_again(small: Small, tmp_path: Path) -> None:
    """So a plan that was built from shards is one with the plan that was built from the model."""
    cached = small("Plain")
    two = cached.plan(tmp_path, cuts=("relu_1",))
    again = _cut_again(tmp_path / "m", two, tmp_path / "new", cuts=("relu", "relu_1"))
    assert again.plan_id == cached.plan(tmp_path / "straight", cuts=("relu", "relu_1")).plan_id


def test_weights_that_two_stages_hold_are_written_once(small: Small, tmp_path: Path) -> None:
    cached = small("Tied")
    plan = cached.plan(tmp_path, cuts=("linear_1",))
    assert plan.tied_weights == ("shared.weight",)
    assert rejoin(tmp_path / "m", plan).weight_bytes == cached.graph.model.weight_bytes


@pytest.mark.parametrize("name", ["ShapeCarrier", "TwoOutputs"])
def test_it_can_be_cut_elsewhere(small: Small, tmp_path: Path, name: str) -> None:
    cached = small(name)
    plan = cached.plan(tmp_path, num_stages=3)
    new = _cut_again(tmp_path / "m", plan, tmp_path / "new", num_stages=2)
    assert new.model == plan.model
    assert f"the shards of plan {plan.plan_id}" in new.verification.reference
    answer = run_shards(tmp_path / "new" / "m", new, cached.batch, threads=1, batch_size=2)
    for output, expected in cached.expected.items():
        np.testing.assert_allclose(answer[output], expected, atol=1e-5)


def test_an_error_of_putting_together_is_found(small: Small, tmp_path: Path) -> None:
    """The control: what is cut next is compared with the shards, not with what was made of them."""
    plan = small("Plain").plan(tmp_path, num_stages=2)
    model = rejoin(tmp_path / "m", plan)
    weights = {name: np.array(array) for name, array in model.weights.items()}
    weights["first.weight"] *= 1.01
    broken = replace(model, weights=weights)
    with pytest.raises(VerificationError):
        _build(tmp_path / "m", plan, broken, tmp_path / "new", num_stages=2)
    assert not (tmp_path / "new" / "m").exists()


def test_a_damaged_shard_is_refused(small: Small, tmp_path: Path) -> None:
    plan = small("Plain").plan(tmp_path, num_stages=2)
    file = tmp_path / "m" / "stage-1" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ShardHashMismatchError):
        rejoin(tmp_path / "m", plan)


def test_stages_that_were_never_one_graph_are_refused(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path)
    with pytest.raises(PlanError, match="cannot be put together again"):
        rejoin(tmp_path / "tiny", plan)


def test_it_needs_neither_torch_nor_the_model(small: Small, tmp_path: Path) -> None:
    small("Plain").plan(tmp_path, num_stages=2)
    shutil.move(tmp_path / "m", tmp_path / "elsewhere")
    code = (
        "import sys; from pathlib import Path; from contract.plan import load_plan;"
        "from planner.rejoin import rejoin; folder = Path(sys.argv[1]);"
        "rejoin(folder, load_plan(folder)); import planner.watch.service;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "elsewhere")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def _cut_again(folder: Path, plan: Plan, out: Path, **request: object) -> Plan:
    return _build(folder, plan, rejoin(folder, plan), out, **request)


def _build(folder: Path, plan: Plan, model: CanonicalModel, out: Path, **request: object) -> Plan:
    graph = segment_graph(model)
    settings = {"name": "m", "out_dir": out, "profile": flops_profile(graph), "refine": False}
    merged = PlanRequest(**{**settings, **request})  # type: ignore[arg-type]
    return build_plan(as_imported(folder, plan, model, 1), graph, merged)
