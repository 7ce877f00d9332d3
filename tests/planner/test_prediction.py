"""What a plan says that it will do, against the cost model and the simulation."""

from dataclasses import replace

import pytest

from contract.errors import PartitionError
from contract.plan import Codec
from contract.prediction import Prediction
from planner.cost_model import batches_per_s, latency_ms
from planner.predict import predict, rate_ceiling, replicas
from planner.problem import MB, DeviceCosts, Link, Problem, RelayCosts, Solution, StageChoice
from planner.rules import Rules
from planner.simulation.routing import default_window
from planner.simulation.simulate import simulate
from tests.planner.random_plans import KINDS, Kind, Stages, random_plan, try_everything


def solution_of(problem: Problem, stages: Stages) -> Solution:
    rate = batches_per_s(problem, stages)
    return Solution(stages, rate, rate)


def predicted(problem: Problem, stages: Stages, window: int | None = None) -> Prediction:
    codecs: list[Codec] = ["float32"] * len(problem.edge_bytes)
    return predict(problem, solution_of(problem, stages), window, codecs, "a test")


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_is_what_the_cost_model_and_the_simulation_say(kind: Kind) -> None:
    for seed in range(5):
        problem, stages = random_plan(seed, kind, window_batches=3)
        problem = replace(problem, batch_size=4)
        said = predicted(problem, stages)
        rate = batches_per_s(problem, stages)
        assert said.images_per_s == pytest.approx(4 * rate)
        assert said.gap == 0.0
        assert said.latency_ms == latency_ms(problem, stages)
        assert said.window >= default_window(stages)
        assert said.loaded_latency_ms == simulate(problem, stages, said.window).latency_ms_p50
        assert {device.device for device in said.devices} == {
            name for stage in stages for name in stage.devices
        }
        for index in range(len(stages)):
            shares = [device.share for device in said.devices if device.stage_index == index]
            assert sum(shares) == pytest.approx(1.0)
        crossing = [0, *(stage.end for stage in stages)]
        assert [edge.bytes_per_batch for edge in said.edges] == [
            problem.edge_bytes[edge] for edge in crossing
        ]
        assert said.broker_bytes_per_image == sum(e.bytes_per_batch for e in said.edges) / 4
        assert Prediction.model_validate_json(said.model_dump_json()) == said


@pytest.mark.parametrize("kind", ["pipeline", "replicas", "mixed"])
def test_predicted_shares_and_utilisation_are_those_of_the_simulation(kind: Kind) -> None:
    for seed in range(10):
        problem, stages = random_plan(seed, kind)
        said = predicted(problem, stages)
        seen = simulate(problem, stages, window=8 * len(said.devices))
        for device in said.devices:
            load = seen.devices[device.device]
            busiest = max(load.processor.utilisation, load.up.utilisation, load.down.utilisation)
            assert device.utilisation == pytest.approx(busiest, abs=0.04), (seed, device)
            assert device.share == pytest.approx(load.share, abs=0.04), (seed, device)


def test_the_loaded_latency_grows_with_the_window() -> None:
    problem, stages = random_plan(3, "pipeline")
    waits = [predicted(problem, stages, window).loaded_latency_ms for window in (1, 8, 32)]
    assert waits[0] == pytest.approx(latency_ms(problem, stages))
    assert waits[0] < waits[1] < waits[2]


def two_kinds() -> tuple[Problem, Stages]:
    """A quick device with little memory, and one of half its speed behind a slow link."""
    quick = DeviceCosts(
        "quick",
        (10.0, 10.0),
        RelayCosts(0.0, 0.0),
        Link(1e6, 1e6, 1.0),
        memory_bytes=150 * MB,
        unpacked_ms=(12.5, 12.5),
    )
    slow = replace(quick, name="slow", segment_ms=(25.0, 25.0), link=Link(5e5, 5e5, 3.0))
    slow = replace(slow, memory_bytes=None, unpacked_ms=None)
    problem = Problem((quick, slow), (20 * MB, 20 * MB), (0, 0), (3000, 3000, 3000))
    return problem, (StageChoice(0, 2, ("quick", "slow")),)


def test_replicas_carry_their_speed_and_whether_their_weights_are_prepacked() -> None:
    problem, stages = two_kinds()
    ((quick, slow),) = replicas(problem, solution_of(problem, stages))
    # 80 MB and twice 40 MB do not fit into 150 MB: the quick one goes unpacked, at 25 ms.
    assert (quick.device, quick.speed, quick.prepack) == ("quick", 1.0, False)
    assert (slow.device, slow.speed, slow.prepack) == ("slow", 0.5, True)
    (first, second) = predicted(problem, stages).devices
    assert (first.prepack, first.memory_limit_bytes) == (False, 150 * MB)
    assert (second.memory_bytes, second.memory_limit_bytes) == (160 * MB + 18000, None)
    assert (first.share, second.share) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_transfers_to_several_devices_are_weighed_by_their_shares() -> None:
    problem, stages = two_kinds()
    (inputs, results) = predicted(problem, stages).edges
    # 3 ms on the wire and 1 ms of latency, or 6 and 3.
    assert inputs.transfer_ms == pytest.approx(4 * 2 / 3 + 9 * 1 / 3)
    assert results.transfer_ms == pytest.approx(inputs.transfer_ms)


def test_each_edge_says_its_own_codec() -> None:
    problem, _ = two_kinds()
    stages = (StageChoice(0, 1, ("quick",)), StageChoice(1, 2, ("slow",)))
    codecs: list[Codec] = ["float32", "int8", "float32"]
    said = predict(problem, solution_of(problem, stages), 2, codecs, "a test")
    assert [edge.codec for edge in said.edges] == codecs
    with pytest.raises(ValueError, match="3 edges have as many codecs, got 2"):
        predict(problem, solution_of(problem, stages), 2, codecs[:2], "a test")


def test_a_solution_that_does_not_fit_is_not_predicted() -> None:
    problem, stages = two_kinds()
    small = replace(problem.devices[0], memory_bytes=100 * MB)
    with pytest.raises(PartitionError, match="quick: 100 MB free, 120 MB needed"):
        predicted(replace(problem, devices=(small, problem.devices[1])), stages)


def test_no_plan_passes_the_ceiling_which_stands_in_for_a_missing_bound() -> None:
    for seed in range(15):
        kind = KINDS[seed % len(KINDS)]
        problem, _ = random_plan(seed, kind, max_devices=3)
        best = try_everything(problem, Rules())
        assert rate_ceiling(problem) >= best.value * (1 - 1e-9)
        unbounded = replace(best, bound=float("inf"))
        codecs: list[Codec] = ["float32"] * len(problem.edge_bytes)
        said = predict(problem, unbounded, None, codecs, "a test")
        assert said.bound_images_per_s == pytest.approx(rate_ceiling(problem))
        quick = try_everything(problem, Rules(objective="latency"))
        said = predict(problem, quick, None, codecs, "a test")  # its bound is one of latencies
        assert said.bound_images_per_s >= best.value * (1 - 1e-9)
