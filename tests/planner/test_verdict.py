"""The recommendation: the best rate, but a simpler way when it is as good; and the reason."""

from dataclasses import replace
from functools import partial

import pytest

from contract.errors import PartitionError
from contract.prediction import Prediction, Strategy, Verdict
from planner.partition import Rules
from planner.problem import MB, DeviceCosts, Link, Problem, RelayCosts, StageChoice
from planner.verdict import STRATEGIES, Weighed, recommend, strategy_of, weigh
from tests.planner.random_plans import KINDS, random_plan, try_everything

RELAY = RelayCosts(0.1, 1e-6)


def weighed(problem: Problem, **rules: object) -> Weighed:
    return weigh(
        problem,
        partial(try_everything, problem),
        Rules(**rules),  # type: ignore[arg-type]
        ["float32"] * len(problem.edge_bytes),
        "a test",
    )


def drawer(
    count: int, *segment_ms: float, memory_bytes: int | None = None, link: Link | None = None
) -> Problem:
    """So many equal devices; a segment has 100 MB of weights and sends 100 KB."""
    devices = tuple(
        DeviceCosts(f"pi-{index}", segment_ms, RELAY, link or Link(), memory_bytes)
        for index in range(count)
    )
    num = len(segment_ms)
    return Problem(devices, (100 * MB,) * num, (0,) * num, (100_000,) * (num + 1))


def images_per_s(verdict: Verdict, strategy: Strategy) -> float:
    alternative = verdict.of(strategy)
    assert alternative is not None
    assert alternative.prediction is not None
    return alternative.prediction.images_per_s


def test_where_the_whole_model_fits_replicas_pass_the_uneven_pipeline() -> None:
    verdict = weighed(drawer(3, 30.0, 10.0, 5.0)).verdict
    assert verdict.recommended == verdict.chosen == "replicas"
    rate = images_per_s(verdict, "replicas")
    ratio = rate / images_per_s(verdict, "pipeline")
    assert verdict.reason == (
        "replicas: 3 devices with the whole model each give together "
        f"{rate:.1f} images/s, 3.00 x one device and {ratio:.2f} x the "
        "best pipeline; the broker carries 0.20 MB an image"
    )


def test_where_the_whole_model_does_not_fit_the_pipeline_wins_and_the_reason_says_so() -> None:
    verdict = weighed(drawer(2, 20.0, 20.0, memory_bytes=300 * MB)).verdict
    assert verdict.recommended == "pipeline"
    assert verdict.reason.startswith(
        "pipeline: the whole model needs 481 MB and no device has more than 300 MB free; "
        "2 devices in 2 stages give "
    )
    single = verdict.of("single")
    assert single is not None
    assert single.prediction is None
    assert single.problem == "nothing fits single"


def test_unlike_memory_names_the_device_that_comes_nearest() -> None:
    problem = drawer(2, 20.0, 20.0, memory_bytes=300 * MB)
    heavy = replace(problem.devices[1], name="heavy", base_bytes=180 * MB, memory_bytes=390 * MB)
    verdict = weighed(replace(problem, devices=(problem.devices[0], heavy))).verdict
    assert "needs 481 MB on pi-0, which has 300 MB free and comes nearest" in verdict.reason


def test_where_the_broker_is_the_bottleneck_one_device_is_enough() -> None:
    problem = drawer(3, 5.0, 5.0)
    problem = replace(problem, broker=replace(problem.broker, bytes_per_s=1.5e7))
    verdict = weighed(problem).verdict
    assert verdict.recommended == "single"
    assert verdict.reason.startswith("single: pi-0 alone gives ")
    assert "and further devices add less than 3%; the broker's link is the" in verdict.reason


def test_one_device_has_no_alternative() -> None:
    verdict = weighed(drawer(1, 5.0, 5.0)).verdict
    assert verdict.recommended == "single"
    assert "and there is no other device" in verdict.reason
    pipeline = verdict.of("pipeline")
    assert pipeline is not None
    assert pipeline.problem


def test_unlike_devices_of_which_none_holds_everything_make_a_mixed_plan() -> None:
    problem = drawer(3, 30.0, 10.0, memory_bytes=300 * MB)
    weighing = weighed(problem)
    assert weighing.verdict.recommended == "mixed"
    assert strategy_of(weighing.chosen.stages) == "mixed"
    assert "2 stages give" in weighing.verdict.reason
    assert "x the best pipeline" in weighing.verdict.reason


def rated(images_per_s: float, latency_ms: float = 1.0) -> Prediction:
    problem, _ = random_plan(0, "pipeline")
    alternative = weighed(problem).verdict.alternatives[0].prediction
    assert alternative is not None
    return alternative.model_copy(update={"images_per_s": images_per_s, "latency_ms": latency_ms})


def test_a_simpler_way_wins_within_three_percent_of_the_best() -> None:
    found: dict[Strategy, Prediction] = {"pipeline": rated(97.5), "mixed": rated(100.0)}
    assert recommend(found, "throughput") == "pipeline"
    assert recommend(found | {"replicas": rated(97.1)}, "throughput") == "replicas"
    assert recommend(found | {"single": rated(96.9)}, "throughput") == "pipeline"
    assert recommend(found | {"pipeline": rated(96.0)}, "throughput") == "mixed"


def test_for_the_least_latency_latencies_are_compared() -> None:
    found: dict[Strategy, Prediction] = {"single": rated(1, 40.0), "replicas": rated(4, 40.0)}
    assert recommend(found | {"pipeline": rated(2, 39.0)}, "latency") == "single"
    assert recommend(found | {"pipeline": rated(2, 35.0)}, "latency") == "pipeline"


def test_a_pipeline_over_devices_that_are_good_at_different_things_is_quicker() -> None:
    problem = drawer(2, 5.0, 50.0)
    other = replace(problem.devices[1], segment_ms=(50.0, 5.0))
    verdict = weighed(
        replace(problem, devices=(problem.devices[0], other)), objective="latency"
    ).verdict
    assert verdict.recommended == "pipeline"
    assert "ms for a batch alone, 0.19 x that of one device" in verdict.reason


def test_the_recommendation_is_never_more_than_three_percent_below_the_best_plan() -> None:
    for seed in range(6):
        problem, _ = random_plan(seed, KINDS[seed % len(KINDS)], max_devices=3)
        best = try_everything(problem, Rules())
        weighing = weighed(problem)
        assert weighing.chosen.value >= best.value * 0.97
        assert [each.strategy for each in weighing.verdict.alternatives] == list(STRATEGIES)


def test_what_was_asked_for_is_chosen_even_where_another_is_recommended() -> None:
    problem = drawer(3, 30.0, 10.0, 5.0)
    asked = weighed(problem, strategy="pipeline")
    assert (asked.verdict.recommended, asked.verdict.chosen) == ("replicas", "pipeline")
    assert strategy_of(asked.chosen.stages) == "pipeline"
    counted = weighed(problem, num_stages=2)
    assert counted.verdict.recommended == "replicas"
    assert len(counted.chosen.stages) == 2
    assert weighed(problem, num_stages=1).verdict.chosen == "replicas"


def test_what_was_asked_for_and_cannot_be_is_refused() -> None:
    problem = drawer(2, 20.0, 20.0, memory_bytes=300 * MB)
    with pytest.raises(PartitionError, match="nothing fits replicas"):
        weighed(problem, strategy="replicas")
    with pytest.raises(PartitionError, match="nothing fits"):
        weighed(drawer(2, 20.0, memory_bytes=100 * MB))


def test_a_solution_is_named_by_its_stages() -> None:
    one, two, both = StageChoice(0, 1, ("a",)), StageChoice(1, 2, ("b",)), ("b", "c")
    assert strategy_of([one]) == "single"
    assert strategy_of([replace(one, devices=both)]) == "replicas"
    assert strategy_of([one, two]) == "pipeline"
    assert strategy_of([one, replace(two, devices=both)]) == "mixed"
