"""From a request to choices: devices, verdict, codecs, in the planner's own terms."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contract.errors import PartitionError
from contract.plan import load_plan
from planner.choose import choose, with_codecs
from planner.codec_choice import work_bytes
from planner.cost_model import REFERENCE_RELAY, batches_per_s, latency_ms, memory_bytes
from planner.formulate import Site, formulate
from planner.problem import BrokerCosts, DeviceCosts, Link
from planner.request import Calibration, PlanRequest
from planner.verdict import figure
from tests.planner.conftest import Cached, flops_profile

Small = Callable[[str], Cached]


def site(cached: Cached, count: int = 3, slower: float = 1000.0, **fields: object) -> Site:
    """Equal devices, so slow that computing decides; ``fields`` of every device."""
    times = tuple(slower * ms for ms in flops_profile(cached.graph).segment_ms)
    devices = tuple(
        DeviceCosts(f"pi-{index}", times, REFERENCE_RELAY, **fields)  # type: ignore[arg-type]
        for index in range(count)
    )
    return Site(devices, "a test")


def request(cached: Cached, where: Site, folder: Path = Path(), **fields: object) -> PlanRequest:
    made_up = flops_profile(cached.graph)
    return PlanRequest(
        "m",
        folder,
        site=lambda _profile: where,
        profile=made_up,
        refine=False,
        **fields,  # type: ignore[arg-type]
    )


def test_equal_devices_that_hold_the_model_are_given_all_of_it(small: Small) -> None:
    model = small("Plain")
    (choice,) = choose(model.graph, request(model, site(model)))
    assert choice.verdict is not None
    assert choice.verdict.recommended == choice.verdict.chosen == "replicas"
    assert len(choice.decision.stages) == 1
    assert len(choice.decision.stages[0].devices) == 3
    assert choice.prediction is not None
    assert choice.prediction.gap == 0
    assert choice.prediction.based_on == "a test"
    assert {a.strategy for a in choice.verdict.alternatives} == {
        *("single", "replicas", "pipeline", "mixed")
    }


def test_the_strategy_that_is_asked_for_overrides_the_recommended_one(small: Small) -> None:
    model = small("Plain")
    choice = choose(model.graph, request(model, site(model), strategy="pipeline"))[-1]
    assert choice.verdict is not None
    assert (choice.verdict.chosen, choice.verdict.recommended) == ("pipeline", "replicas")
    assert [len(stage.devices) for stage in choice.decision.stages] == [1] * len(
        choice.decision.stages
    )
    assert len(choice.decision.stages) > 1
    of_chosen = choice.verdict.of("pipeline")
    assert of_chosen is not None
    assert of_chosen.prediction == choice.prediction


def test_a_model_that_no_device_can_hold_is_cut(small: Small) -> None:
    model = small("Plain")
    free = site(model, base_bytes=0)
    problem = formulate(model.graph, free, batch_size=1)
    whole = memory_bytes(problem, problem.devices[0], 0, problem.num_segments)
    limited = site(model, base_bytes=0, memory_bytes=whole - 1)
    choice = choose(model.graph, request(model, limited, codec="float32"))[-1]
    assert len(choice.decision.stages) > 1
    assert choice.verdict is not None
    single = choice.verdict.of("single")
    assert single is not None
    assert single.problem is not None


def test_what_fits_nowhere_is_explained(small: Small) -> None:
    model = small("Plain")
    with pytest.raises(PartitionError, match="MB"):
        choose(model.graph, request(model, site(model, memory_bytes=1000)))


def test_a_slow_link_is_met_by_a_lossy_codec_and_a_quick_one_is_not(small: Small) -> None:
    model = small("Plain")
    slow = site(model, slower=1.0, link=Link(2e5, 2e5))
    choices = choose(model.graph, request(model, slow, strategy="pipeline", cuts=("relu",)))
    assert choices[0].is_lossy
    assert not choices[-1].is_lossy
    assert choices[0].decision.rate > choices[-1].decision.rate * 1.01
    assert choices[0].codecs[-1] == "float32"  # results travel as they are
    assert choices[0].prediction is not None
    assert [edge.codec for edge in choices[0].prediction.edges] == [
        "float32",
        *choices[0].codecs,
    ]
    quick = choose(model.graph, request(model, site(model), strategy="pipeline"))
    assert [choice.is_lossy for choice in quick] == [False]


def test_a_codec_that_is_asked_for_is_used_on_every_cut(small: Small, tmp_path: Path) -> None:
    model = small("Plain")
    wanted = request(model, site(model), tmp_path, strategy="pipeline", codec="int8")
    (choice,) = choose(model.graph, wanted)
    assert set(choice.codecs[:-1]) == {"int8"}
    plan = model.plan(tmp_path, **{k: getattr(wanted, k) for k in ("site", "strategy", "codec")})
    assert [stage.codec for stage in plan.stages] == [*["int8"] * (plan.num_stages - 1), "float32"]
    assert plan.verification.codecs is not None
    assert plan.verification.codecs.images == 32


def test_a_codec_whose_loss_is_too_large_is_given_up(small: Small, tmp_path: Path) -> None:
    model = small("Plain")
    slow = site(model, slower=1.0, link=Link(2e5, 2e5))
    images = model.batch
    kept = model.plan(
        tmp_path,
        site=lambda _profile: slow,
        strategy="pipeline",
        cuts=("relu",),
        calibration=Calibration(np.asarray(images)),
        max_accuracy_drop=100.0,
    )
    assert any(stage.codec != "float32" for stage in kept.stages)
    assert kept.verification.codecs is not None
    given_up = model.plan(
        tmp_path,
        site=lambda _profile: slow,
        strategy="pipeline",
        cuts=("relu",),
        calibration=Calibration(np.asarray(images)),
        max_accuracy_drop=-1.0,  # no codec can do that
    )
    assert all(stage.codec == "float32" for stage in given_up.stages)
    assert given_up.verification.codecs is None


def test_a_plan_for_known_devices_is_placed_and_says_what_it_predicts(
    small: Small, tmp_path: Path
) -> None:
    model = small("Plain")
    where = site(model, count=2)
    fast = replace(
        where.devices[0],
        name="fast",
        segment_ms=tuple(ms / 2 for ms in where.devices[0].segment_ms),
    )
    where = replace(where, devices=(*where.devices[:1], fast))
    plan = model.plan(tmp_path, site=lambda _profile: where, codec="float32")
    assert load_plan(tmp_path / "m") == plan
    (spot,) = plan.placement
    speeds = {replica.device: replica.speed for replica in spot.replicas}
    assert speeds == {"fast": 1.0, "pi-0": pytest.approx(0.5, abs=0.05)}
    assert plan.prediction is not None
    assert plan.verdict is not None
    assert len(plan.segments) == model.graph.num_segments
    assert sum(segment.weight_bytes for segment in plan.segments) >= plan.stages[0].weight_bytes
    assert [segment.cut for segment in plan.segments[:-1]] == list(model.graph.cut_names)


def test_codecs_change_what_travels_and_what_it_costs_but_not_what_a_cut_costs(
    small: Small,
) -> None:
    model = small("Plain")
    problem = formulate(model.graph, site(model), batch_size=4)
    packed = with_codecs(problem, model.graph, {2: "int8"})
    spec = model.graph.cuts[1].spec
    plain = 4 * spec.bytes_per_image
    assert problem.edge_bytes[2] == plain
    assert packed.edge_bytes[2] == plain // 4 + 4 * 4  # and a float32 scale for each image
    assert packed.work_bytes(2) == work_bytes("int8", plain)
    assert packed.cut_bytes(2) == plain
    others = [edge for edge in range(len(problem.edge_bytes)) if edge != 2]
    assert [packed.edge_bytes[e] for e in others] == [problem.edge_bytes[e] for e in others]


def test_the_quick_methods_give_a_pipeline_beside_a_bound(small: Small) -> None:
    model = small("Plain")
    for method in ("greedy", "even"):
        choice = choose(model.graph, request(model, site(model), partitioner=method))[-1]
        assert choice.verdict is None
        assert choice.prediction is not None
        assert choice.prediction.images_per_s <= choice.prediction.bound_images_per_s * (1 + 1e-9)


def test_a_shared_link_bounds_every_plan(small: Small) -> None:
    model = small("Plain")
    where = replace(site(model, slower=0.001), broker=BrokerCosts(bytes_per_s=1e5))
    choice = choose(model.graph, request(model, where, codec="float32"))[-1]
    assert choice.prediction is not None
    assert choice.prediction.bottleneck == "the broker's link"
    crossing = sum(edge.bytes_per_batch for edge in choice.prediction.edges)
    assert choice.prediction.images_per_s == pytest.approx(1e5 / crossing)
    assert choice.decision.rate == pytest.approx(
        batches_per_s(choice.decision.problem, choice.decision.stages)
    )


def test_the_verdict_tells_of_the_chosen_strategy_what_the_plan_will_do(small: Small) -> None:
    model = small("Plain")
    slow = site(model, slower=1.0, link=Link(2e5, 2e5))
    for choice in choose(model.graph, request(model, slow, strategy="pipeline", cuts=("relu",))):
        assert choice.verdict is not None
        chosen = choice.verdict.of("pipeline")
        assert chosen is not None
        assert chosen.prediction == choice.prediction


def test_codecs_are_chosen_for_the_objective_that_is_asked_for(small: Small) -> None:
    model = small("Plain")
    slow = site(model, slower=1.0, link=Link(2e5, 2e5))
    wanted = request(model, slow, strategy="pipeline", cuts=("relu",), objective="latency")
    choices = choose(model.graph, wanted)
    assert choices[0].is_lossy
    best, plain = choices[0].decision, choices[-1].decision
    assert best.solution.value == pytest.approx(latency_ms(best.problem, best.stages))
    assert best.solution.value < plain.solution.value
    assert best.solution.bound <= best.solution.value


def test_the_reason_compares_with_what_a_lossy_codec_brings(small: Small) -> None:
    model = small("Plain")
    slow = site(model, slower=1.0, link=Link(2e5, 2e5))
    choices = choose(model.graph, request(model, slow, strategy="pipeline", cuts=("relu",)))
    assert choices[0].is_lossy
    for choice in choices:
        assert choice.verdict is not None
        assert choice.prediction is not None
        best = choice.verdict.of(choice.verdict.recommended)
        assert best is not None
        assert best.prediction is not None
        ratio = best.prediction.images_per_s / choice.prediction.images_per_s
        assert f"{figure(ratio)} x the best pipeline" in choice.verdict.reason
