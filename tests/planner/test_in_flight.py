"""Few sequences: a plan's rate is that of the tokens that can be under way at once."""

from dataclasses import replace
from functools import partial

import pytest

from planner.cost_model import batches_per_s, bottleneck, in_flight_rate, round_ms
from planner.partition import form_of, partition
from planner.predict import predict
from planner.problem import BrokerCosts, ClientCosts, Link, Problem, RelayCosts, StageChoice
from planner.rules import Rules
from planner.simulation.simulate import simulate
from planner.simulation.under_load import window_rates
from planner.verdict import weigh
from tests.planner.problems import all_plans, device, problem


def four_alike(in_flight: int | None, **fields: object) -> Problem:
    """Four devices of 200 ms a token for four blocks; each message 1 ms up and 1 ms down."""
    link = Link(1e5, 1e5)
    devices = [device(f"pi-{index}", (50.0,) * 4, link=link, **fields) for index in range(4)]
    return problem(devices, (100,) * 5, unit="token", batches_in_flight=in_flight)


def one_each(count: int) -> tuple[StageChoice, ...]:
    return tuple(StageChoice(index, index + 1, (f"pi-{index}",)) for index in range(count))


def test_a_round_is_through_all_stages_and_back_without_the_client() -> None:
    here = four_alike(1)
    assert round_ms(here, one_each(4)) == pytest.approx(200 + 4 * 2)
    far = replace(here, client=ClientCosts(RelayCosts(50.0, 0.0), Link(latency_ms=100.0)))
    assert round_ms(far, one_each(4)) == pytest.approx(200 + 4 * 2)


@pytest.mark.parametrize(("in_flight", "rate"), [(1, 1e3 / 208), (2, 2e3 / 208), (9, 20.0)])
def test_the_simulation_agrees_with_the_rule(in_flight: int, rate: float) -> None:
    here, stages = four_alike(in_flight), one_each(4)
    assert batches_per_s(here, stages) == pytest.approx(rate)
    seen = simulate(here, stages, window=40)
    assert seen.window == in_flight
    assert seen.batches_per_s == pytest.approx(rate, rel=0.01)
    windows = [row.window for row in window_rates(here, partition(here, Rules("pipeline")))]
    assert max(windows) == in_flight


def test_a_far_client_does_not_slow_the_tokens_down() -> None:
    far = replace(four_alike(1), client=ClientCosts(RelayCosts(1.0, 0.0), Link(latency_ms=100.0)))
    seen = simulate(far, one_each(4), window=1)
    assert seen.batches_per_s == pytest.approx(in_flight_rate(far, one_each(4)), rel=0.01)
    assert seen.client.utilisation > 0  # it hears of each all the same


def test_one_sequence_is_no_faster_on_four_devices_than_on_one() -> None:
    here = four_alike(1)
    weighed = weigh(here, partial(partition, here), Rules(), ("float32",) * 5, "made up")
    assert weighed.verdict.recommended == "single"
    assert "further devices add less" in weighed.verdict.reason
    for alternative in weighed.verdict.alternatives:
        said = alternative.prediction
        assert said is not None
        assert said.images_per_s <= 1e3 / 200
        assert said.window == 1
        assert said.bottleneck == "the number of sequences (batches in flight: 1)"
    free = replace(here, batches_in_flight=None)
    assert batches_per_s(free, partition(free, Rules()).stages) > 3 * 1e3 / 200


def test_two_batches_keep_two_devices_busy_and_need_no_more() -> None:
    here = four_alike(2)
    solution = partition(here, Rules())
    assert sum(len(stage.devices) for stage in solution.stages) == 2
    assert solution.value == pytest.approx(2e3 / 202)
    assert solution.is_optimal


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_no_plan_passes_the_bound_and_what_is_chosen_is_near_the_best(in_flight: int) -> None:
    times = ((9.0, 1.0, 4.0, 4.0), (18.0, 2.0, 8.0, 8.0), (3.0, 9.0, 9.0, 2.0))
    link = Link(1e5, 1e5, 1.0)
    devices = [device(f"pi-{index}", each, link=link) for index, each in enumerate(times)]
    sizes = (50, 300, 20, 400, 10)
    here = problem(devices, sizes, broker=BrokerCosts(1e6), batches_in_flight=in_flight)
    for rules in (Rules(), Rules("pipeline"), Rules("replicas"), Rules("single")):
        solution = partition(here, rules)
        rates = [batches_per_s(here, stages) for stages in all_plans(here, form_of(here, rules))]
        assert solution.value == pytest.approx(batches_per_s(here, solution.stages))
        assert max(rates) <= solution.bound * (1 + 1e-9)
        assert solution.value >= 0.85 * max(rates)
        said = predict(here, solution, None, ("float32",) * 5, "made up")
        assert said.window <= in_flight


def test_what_bounds_a_plan_is_named() -> None:
    assert bottleneck(four_alike(2), one_each(4)).startswith("the number of sequences")
    assert bottleneck(four_alike(9), one_each(4)).startswith("stage ")
    assert bottleneck(four_alike(None), one_each(4)).startswith("stage ")
