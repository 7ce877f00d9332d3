"""The solvers against all plans of small problems, and against each other on large ones."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from contract.errors import PartitionError
from contract.prediction import Strategy
from planner.cost_model import (
    batches_per_s,
    broker_rate,
    client_rate,
    cut_edges,
    latency_ms,
    stage_costs,
    stage_rate,
)
from planner.partition import form_of, partition
from planner.problem import BrokerCosts, ClientCosts, Link, Problem, RelayCosts
from planner.rules import Method, Rules
from planner.solver.bounded import bounded_fastest, bounded_quickest, grouped, rate_bound
from planner.solver.exact import fastest, kinds_for_rate, quickest
from planner.solver.grouping import best_of, worst_of
from planner.solver.integer_program import ask
from planner.solver.spans import make_spans, span_costs
from tests.planner.problems import all_plans, device, problem, random_problem

STRATEGIES: list[Strategy] = ["single", "replicas", "pipeline", "mixed"]


def random_rules(generator: random.Random, given: Problem) -> Rules | None:
    """Rules that do not contradict themselves; None where the dice did."""
    count = given.num_segments
    boundaries = None
    if generator.random() < 0.2:
        boundaries = tuple(sorted({0, count, generator.randint(0, count)}))
    rules = Rules(
        strategy=generator.choice(STRATEGIES),
        num_stages=None if boundaries else generator.choice([None, None, generator.randint(1, 4)]),
        boundaries=boundaries,
        max_devices=generator.choice([None, None, generator.randint(1, 4)]),
        min_stages=generator.choice([1, 1, 2]),
    )
    try:
        form_of(given, rules)
    except PartitionError:
        return None
    return rules


@pytest.mark.parametrize("seed", range(8))
def test_exact_is_the_best_of_all_plans(seed: int) -> None:
    generator = random.Random(seed)
    compared = solved = 0
    while compared < 65:
        given = random_problem(generator, generator.randint(1, 5), generator.randint(1, 4))
        rules = random_rules(generator, given)
        if rules is None:
            continue
        compared += 1
        plans = list(all_plans(given, form_of(given, rules)))
        best = max((batches_per_s(given, plan) for plan in plans), default=0.0)
        least = min((latency_ms(given, plan) for plan in plans), default=math.inf)
        if best == 0.0:
            with pytest.raises(PartitionError):
                partition(given, rules)
            continue
        solved += 1
        found = partition(given, rules)
        assert found.stages in plans or sorted_devices(found.stages) in map(sorted_devices, plans)
        assert found.value == batches_per_s(given, found.stages)
        assert found.value == pytest.approx(best, rel=1e-9)
        assert found.is_optimal
        assert found.bound >= found.value
        quick = partition(given, replace(rules, objective="latency"))
        assert quick.value == latency_ms(given, quick.stages)
        assert quick.value == pytest.approx(least, rel=1e-9)
        assert quick.is_optimal
    assert solved > 30


def price(given: Problem, plan: tuple) -> tuple[int, int]:  # type: ignore[type-arg]
    edges = sum(given.edge_bytes[edge] for edge in cut_edges(plan))
    return edges, sum(len(stage.devices) for stage in plan)


def sorted_devices(stages: tuple) -> list:  # type: ignore[type-arg]
    return [(stage.first, stage.end, sorted(stage.devices)) for stage in stages]


@pytest.mark.parametrize("seed", range(4))
def test_among_the_fastest_it_takes_the_fewest_bytes_and_then_the_fewest_devices(seed: int) -> None:
    generator = random.Random(100 + seed)
    for _ in range(25):
        given = random_problem(generator, generator.randint(2, 4), generator.randint(2, 4))
        # Whole ms and few sizes: many plans are equally fast.
        devices = tuple(
            replace(one, segment_ms=tuple(float(round(ms)) + 1 for ms in one.segment_ms))
            for one in given.devices
        )
        quiet = BrokerCosts(given.broker.bytes_per_s)
        slow_client = ClientCosts(RelayCosts(generator.choice([0.0, 20.0]), 0.0))
        given = replace(given, devices=devices, broker=quiet, client=slow_client)
        form = form_of(given, Rules())
        plans = list(all_plans(given, form))
        best = max(batches_per_s(given, plan) for plan in plans)
        if best == 0.0:
            continue

        fast = [plan for plan in plans if batches_per_s(given, plan) >= best * (1 - 1e-12)]
        chosen = partition(given, Rules()).stages
        assert price(given, chosen) == min(price(given, plan) for plan in fast)


def test_the_tables_say_what_the_cost_model_says() -> None:
    generator = random.Random(7)
    seen = set()
    for _ in range(30):
        given = random_problem(generator, 12, 3)
        spans = make_spans(12)
        for one in given.devices:
            rates = span_costs(given, one, spans).rate
            for span in range(spans.count):
                costs = stage_costs(given, one, *spans.segments(span))
                seen.add(None if costs is None else costs.prepack)
                expected = 0.0 if costs is None else 1e3 / max(costs.busy_ms, 1e-9)
                assert rates[span] == pytest.approx(expected, rel=1e-9)
    assert seen == {None, True, False}


def test_a_smaller_tensor_one_segment_later_is_worth_an_unbalanced_cut() -> None:
    """After the pooling, 20 KB travel instead of 400 KB."""
    edges = (100, 400_000, 20_000, 100)
    slow, quick = Link(1e6, 1e6), Link()
    times = (50.0, 20.0, 30.0)
    two = [device(f"pi-{index}", times, link=slow) for index in range(2)]
    cut = partition(problem(two, edges), Rules(strategy="pipeline", num_stages=2))
    assert cut_edges(cut.stages) == [0, 2, 3]
    assert cut.value == pytest.approx(1e3 / 70)
    unlimited = [replace(one, link=quick) for one in two]
    balanced = partition(problem(unlimited, edges), Rules(strategy="pipeline", num_stages=2))
    assert cut_edges(balanced.stages) == [0, 1, 3]
    assert balanced.value == pytest.approx(1e3 / 50)


def test_a_narrow_broker_moves_the_cut_too_and_in_the_end_forbids_it() -> None:
    edges = (100, 400_000, 20_000, 100)
    two = [device(f"pi-{index}", (50.0, 20.0, 30.0)) for index in range(2)]
    pipeline = Rules(strategy="pipeline", min_stages=2)
    narrow = problem(two, edges, broker=BrokerCosts(bytes_per_s=1e6))
    assert cut_edges(partition(narrow, pipeline).stages) == [0, 2, 3]
    strangled = replace(narrow, broker=BrokerCosts(bytes_per_s=1e5))
    assert len(partition(strangled, Rules(strategy="pipeline")).stages) == 1


def test_a_device_that_would_slow_a_pipeline_down_is_left_out() -> None:
    times = (10.0, 10.0, 10.0)
    fast = [device(f"pi5-{index}", times) for index in range(2)]
    zero = device("pi-zero", tuple(20 * ms for ms in times))
    given = problem([zero, *fast], (100,) * 4)
    chosen = partition(given, Rules(strategy="pipeline"))
    assert {name for stage in chosen.stages for name in stage.devices} == {"pi5-0", "pi5-1"}


def test_two_devices_share_the_slow_stage_that_cannot_be_cut() -> None:
    given = problem([device(f"pi-{i}", (10.0, 20.0)) for i in range(3)], (10, 10, 10))
    mixed = partition(given, Rules(num_stages=2))
    assert [len(stage.devices) for stage in mixed.stages] == [1, 2]
    assert mixed.value == pytest.approx(100)


def test_where_the_client_is_the_limit_no_more_devices_are_used_than_feed_it() -> None:
    client = ClientCosts(RelayCosts(100.0, 0.0))
    given = problem([device(f"pi-{i}", (50.0,)) for i in range(8)], (10, 10), client=client)
    found = partition(given, Rules())
    assert found.value == pytest.approx(client_rate(given))
    assert len(found.stages[0].devices) == 1


def test_devices_that_differ_only_in_ample_memory_are_one_kind() -> None:
    given = problem(
        [device("pi-0", (1.0, 2.0), memory_bytes=10**9), device("pi-1", (1.0, 2.0))], (1, 1, 1)
    )
    assert [kind.names for kind in kinds_for_rate(given, make_spans(2))] == [("pi-0", "pi-1")]


def fleet(segments: int, kinds: list[int], seed: int, broker: float = math.inf) -> Problem:
    """Realistic proportions: kinds that differ in speed by up to five times, tight memory."""
    generator = random.Random(seed)
    base = [generator.uniform(1, 20) for _ in range(segments)]
    devices = []
    for kind, count in enumerate(kinds):
        slower = 1 + 0.3 * kind
        times = tuple(ms * slower * generator.uniform(0.9, 1.1) for ms in base)
        devices += [
            device(
                f"kind{kind}-{index}",
                times,
                relay=RelayCosts(0.1 * slower, 1.4e-6 * slower),
                link=Link(11e6, 11e6, 0.5),
                memory_bytes=(150 + 40 * kind) * 10**6,
                unpacked_ms=tuple(1.2 * ms for ms in times),
            )
            for index in range(count)
        ]
    return problem(
        devices,
        tuple(generator.randint(10**4, 8 * 10**5) for _ in range(segments + 1)),
        weight_bytes=tuple(generator.randint(10**5, 5 * 10**6) for _ in range(segments)),
        broker=BrokerCosts(broker),
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_way_for_large_problems_keeps_its_promise_where_the_truth_is_known(seed: int) -> None:
    generator = random.Random(seed)
    given = random_problem(generator, 6, 4) if seed % 2 else fleet(7, [1, 2, 1, 1], seed, 2e7)
    for strategy in ("mixed", "pipeline"):
        form = form_of(given, Rules(strategy=strategy, min_stages=1 + seed % 3 // 2))
        exact = fastest(given, form)
        found = bounded_fastest(given, form, seconds=0.4)
        assert (exact is None) == (found is None)
        if exact is None or found is None:
            continue
        assert found.value == batches_per_s(given, found.stages)
        assert found.bound >= exact.value * (1 - 1e-9)
        assert found.value <= exact.value * (1 + 1e-9)
        assert found.value > 0.85 * exact.value
    quick, bounded = quickest(given, form), bounded_quickest(given, form)
    assert quick is not None
    assert bounded is not None
    assert bounded.bound <= quick.value * (1 + 1e-9)
    assert bounded.value >= quick.value * (1 - 1e-9)


def test_grouped_devices_and_divisible_ones_give_bounds() -> None:
    for seed in range(3):
        given = fleet(10, [1] * 8, seed)
        form, spans = form_of(given, Rules()), make_spans(10)
        exact = fastest(given, form)
        assert exact is not None
        outer = grouped(given, form, spans, best_of, most_steps=3e4)
        inner = grouped(given, form, spans, worst_of, most_steps=3e4)
        assert outer is not None
        assert inner is not None
        assert inner.value < exact.value < outer.bound < 1.4 * exact.value
        assert inner.value <= batches_per_s(given, inner.stages) <= exact.value
        assert exact.value <= rate_bound(given, form) < 1.2 * exact.value


@pytest.mark.parametrize(
    ("kinds", "broker"), [([1] * 16, math.inf), ([1] * 16, 1.2e7), ([12, 9, 7, 5, 3], math.inf)]
)
def test_more_devices_than_can_be_solved_exactly_get_a_plan_and_a_bound(
    kinds: list[int], broker: float
) -> None:
    given = fleet(16, kinds, 3, broker)
    found = partition(given, Rules(seconds=1.0))
    assert 0.8 * found.bound < found.value <= found.bound
    assert found.value == batches_per_s(given, found.stages)
    names = [name for stage in found.stages for name in stage.devices]
    assert len(names) == len(set(names))
    one = partition(given, Rules(strategy="replicas"))
    assert one.is_optimal
    assert found.value >= one.value * (1 - 1e-9)


def test_the_integer_solver_finds_what_exists_and_refutes_what_does_not() -> None:
    for strategy in ("mixed", "pipeline"):
        for seed in range(4):
            given = fleet(7, [1, 2, 1, 1], seed, 2e7)
            form = form_of(given, Rules(strategy=strategy, num_stages=3 if seed % 2 else None))
            spans, exact = make_spans(7), fastest(given, form)
            assert exact is not None
            kinds = kinds_for_rate(given, spans)
            there = ask(given, form, spans, kinds, exact.value, 20.0)
            assert there.stages is not None
            assert batches_per_s(given, there.stages) >= exact.value * (1 - 2e-6)
            assert ask(given, form, spans, kinds, exact.value * 1.0001, 20.0).impossible


def test_stand_ins_are_better_and_worse_than_all_that_they_stand_for() -> None:
    generator = random.Random(5)
    for _ in range(40):
        given = random_problem(generator, 6, 3)
        spans = make_spans(6)
        rates = np.array([span_costs(given, one, spans).rate for one in given.devices])
        assert np.all(span_costs(given, best_of(given.devices), spans).rate >= rates.max(axis=0))
        assert np.all(span_costs(given, worst_of(given.devices), spans).rate <= rates.min(axis=0))


@pytest.mark.parametrize("method", ["greedy", "even"])
def test_the_baselines_fit_and_are_no_better_than_the_exact_bound(method: Method) -> None:
    for seed in range(6):
        given = fleet(12, [2, 1, 2], seed)
        found = partition(given, Rules(strategy="pipeline", method=method))
        assert found.value == batches_per_s(given, found.stages) > 0
        assert found.bound == partition(given, Rules(strategy="pipeline")).value
        assert all(len(stage.devices) == 1 for stage in found.stages)
        latency = partition(given, Rules(strategy="pipeline", method=method, objective="latency"))
        assert latency.bound <= latency.value == latency_ms(given, latency.stages)


def test_greedy_gives_the_faster_device_more_and_even_counts_segments() -> None:
    devices = [device("slow", (30.0,) * 4), device("fast", (10.0,) * 4)]
    given = problem(devices, (10,) * 5)
    rules = Rules(strategy="pipeline", num_stages=2)
    by_speed = partition(given, replace(rules, method="greedy")).stages
    assert [(s.end - s.first, s.devices) for s in by_speed] == [(3, ("fast",)), (1, ("slow",))]
    by_count = partition(given, replace(rules, method="even")).stages
    assert [(s.end - s.first, s.devices) for s in by_count] == [(2, ("slow",)), (2, ("fast",))]


def test_the_value_is_the_least_of_stages_broker_and_client() -> None:
    given = fleet(16, [4, 4, 4, 4], 1, 3e7)
    found = partition(given, Rules())
    slowest = min(stage_rate(given, stage) for stage in found.stages)
    carried = broker_rate(given, cut_edges(found.stages))
    assert found.value == min(slowest, carried, client_rate(given))
    assert found.is_optimal


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (Rules(num_stages=0), "expected at least 1"),
        (Rules(num_stages=4), "4 stages need 3 cut points, the model has 2"),
        (Rules(num_stages=3), "3 stages need as many devices, there are 2"),
        (Rules(strategy="single", num_stages=2), "the strategy single has one stage, 2 were asked"),
        (Rules(boundaries=(0, 2)), "expected ascending segment indices from 0 to 3"),
        (Rules(boundaries=(0, 2, 2, 3)), "expected ascending"),
        (Rules(boundaries=(0, 2, 3), num_stages=3), "give one of the two"),
        (Rules(num_stages=2, max_devices=1), "there are 1; ask for at most 1 stages"),
    ],
)
def test_rules_that_cannot_hold_are_refused(rules: Rules, reason: str) -> None:
    given = problem([device(f"pi-{i}", (1.0,) * 3) for i in range(2)], (1,) * 4)
    with pytest.raises(PartitionError, match=reason):
        partition(given, rules)


@pytest.mark.parametrize("strategy", ["mixed", "replicas"])
def test_in_large_problems_too_devices_that_add_nothing_are_left_out(strategy: Strategy) -> None:
    given = replace(fleet(16, [1] * 16, 3), client=ClientCosts(RelayCosts(800.0, 0.0)))
    found = partition(given, Rules(strategy=strategy, seconds=0.5))
    assert found.value == pytest.approx(client_rate(given))
    assert found.is_optimal
    assert sum(len(stage.devices) for stage in found.stages) == 1
