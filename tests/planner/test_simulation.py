"""The simulation against the cost model: two accounts of the same system must agree."""

import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from client import sending as client_sending
from client.feed import FeedWatch
from client.router import Router
from contract.activation import BatchId
from contract.errors import PartitionError
from contract.plan import Replica, place
from planner.cost_model import batches_per_s, bottleneck, latency_ms, stage_rate
from planner.problem import DeviceCosts, Link, Problem, RelayCosts, StageChoice
from planner.simulation.routing import default_window, next_device, rates
from planner.simulation.simulate import SPAN_IN_WINDOWS, simulate
from tests.planner.random_plans import KINDS, Kind, Stages, devices_of, random_plan
from tests.tiny import make_tiny_plan

NO_RELAY = RelayCosts(0.0, 0.0)


def line_of(
    *compute_ms: float, link: Link | None = None, window_batches: int = 3
) -> tuple[Problem, Stages]:
    """One device for every segment, no cost but computing and the links."""
    devices = tuple(
        DeviceCosts(f"pi-{index}", tuple(compute_ms), NO_RELAY, link or Link())
        for index in range(len(compute_ms))
    )
    count = len(compute_ms)
    problem = Problem(
        devices, (0,) * count, (0,) * count, (1000,) * (count + 1), window_batches=window_batches
    )
    return problem, tuple(
        StageChoice(index, index + 1, (device.name,)) for index, device in enumerate(devices)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_large_window_a_plan_reaches_the_rate_of_its_bottleneck(kind: Kind) -> None:
    limits = Counter[str]()
    for seed in range(40):
        problem, stages = random_plan(seed, kind)
        seen = simulate(problem, stages, window=8 * devices_of(stages), batches=200)
        expected = batches_per_s(problem, stages)
        assert seen.batches_per_s == pytest.approx(expected, rel=0.02), (kind, seed)
        limits[bottleneck(problem, stages).split()[1]] += 1
    if kind in ("broker", "client"):  # otherwise they prove nothing about broker and client
        assert limits[{"broker": "broker's", "client": "client"}[kind]] >= 12


def test_one_batch_at_a_time_takes_the_latency_of_the_idle_pipeline() -> None:
    for seed in range(100):
        problem, stages = random_plan(seed, "pipeline", window_batches=3)
        seen = simulate(problem, stages, window=1, batches=10)
        expected = latency_ms(problem, stages)
        for latency in (seen.latency_ms_p50, seen.latency_ms_p99):
            assert latency == pytest.approx(expected, abs=1e-6), seed
        assert seen.batches_per_s == pytest.approx(1e3 / expected)


def test_in_a_full_pipeline_latency_is_window_over_rate() -> None:
    for seed in range(20):
        problem, stages = random_plan(seed, "pipeline")
        window = 8 * devices_of(stages)
        seen = simulate(problem, stages, window)
        assert seen.latency_ms_p50 == pytest.approx(window / seen.batches_per_s * 1e3, rel=0.03)


def test_utilisation_is_the_time_at_work_and_the_bottleneck_has_all_of_it() -> None:
    problem, stages = line_of(2.0, 5.0, 1.0)
    seen = simulate(problem, stages, window=12)
    assert seen.batches_per_s == pytest.approx(200)
    work = [load.processor.utilisation for load in seen.devices.values()]
    assert work == pytest.approx([0.4, 1.0, 0.2], abs=0.01)
    # The receive maximum bounds what the slow device holds; the others wait at the broker.
    assert seen.devices["pi-1"].processor.longest_queue == 3
    assert seen.devices["pi-1"].longest_held >= 6
    assert seen.devices["pi-2"].longest_held == 0


def test_replicas_share_by_their_rates() -> None:
    problem, _ = line_of(6.0)
    devices = (problem.devices[0], replace(problem.devices[0], name="slow", segment_ms=(18.0,)))
    problem = replace(problem, devices=devices)
    stages = (StageChoice(0, 1, ("pi-0", "slow")),)
    seen = simulate(problem, stages, window=16)
    assert seen.batches_per_s == pytest.approx(1e3 / 6 + 1e3 / 18, rel=0.01)
    assert seen.devices["slow"].share == pytest.approx(0.25, abs=0.02)


def test_weights_that_are_not_the_rates_cost_latency() -> None:
    problem, _ = line_of(6.0)
    devices = (problem.devices[0], replace(problem.devices[0], name="slow", segment_ms=(18.0,)))
    problem = replace(problem, devices=devices)
    stages = (StageChoice(0, 1, ("pi-0", "slow")),)
    right = simulate(problem, stages, window=16)
    even = simulate(problem, stages, window=16, weights={"pi-0": 1.0, "slow": 1.0})
    assert right.latency_ms_p95 == pytest.approx(16 / right.batches_per_s * 1e3, rel=0.05)
    assert even.latency_ms_p95 == pytest.approx(8 * 18.0)


def test_a_far_device_is_bounded_by_what_it_may_hold_unacknowledged() -> None:
    """What the cost model does not know: a slot is free again after four times the latency."""
    problem, stages = line_of(5.0, link=Link(latency_ms=10.0))
    seen = simulate(problem, stages, window=12)
    assert seen.batches_per_s == pytest.approx(3 / (5 + 4 * 10) * 1e3, rel=0.01)
    patient = replace(problem, window_batches=12)
    assert simulate(patient, stages, window=12).batches_per_s == pytest.approx(200, rel=0.01)


def test_a_window_too_small_for_the_way_leaves_devices_idle() -> None:
    problem, stages = line_of(4.0, 4.0, link=Link(latency_ms=5.0), window_batches=64)
    alone = latency_ms(problem, stages)
    assert simulate(problem, stages, window=3).batches_per_s == pytest.approx(3 / alone * 1e3)


def test_jitter_is_the_same_for_a_seed_and_keeps_the_mean() -> None:
    problem, stages = line_of(4.0, 4.0, window_batches=64)
    run = [simulate(problem, stages, 40, 2000, jitter=0.3, seed=seed) for seed in (1, 1, 2)]
    assert run[0] == run[1]
    assert run[0] != run[2]
    assert run[0].batches_per_s == pytest.approx(250, rel=0.04)
    assert run[0].latency_ms_p50 < run[0].latency_ms_p95 < run[0].latency_ms_p99
    still = simulate(problem, stages, 4)
    shaken = simulate(problem, stages, 4, 2000, jitter=0.3)
    assert shaken.batches_per_s < still.batches_per_s


def test_a_stage_that_does_not_fit_is_refused_with_what_it_needs() -> None:
    problem, stages = line_of(4.0)
    small = replace(problem.devices[0], memory_bytes=50_000_000)
    with pytest.raises(PartitionError, match="pi-0: 50 MB free, 80 MB needed"):
        simulate(replace(problem, devices=(small,)), stages, 2)


def test_the_rule_of_choice_is_the_clients(tmp_path: Path) -> None:
    draw, tiny = random.Random(5), make_tiny_plan(tmp_path)
    for _ in range(20):
        weights = {f"d{index}": draw.choice([0.2, 0.5, 1.0]) for index in range(5)}
        replicas = [Replica(device=name, speed=speed) for name, speed in weights.items()]
        draw.shuffle(replicas)
        plan = place(tiny, [replicas, [Replica(device="x")], [Replica(device="y")]], "c")
        router = Router(plan)
        for name in [*weights, "x", "y"]:
            router.set_live(name, True)
        open_attempts = []
        outstanding = Counter[str]()
        for number in range(100):
            route = router.choose()
            assert route is not None
            assert route[0] == next_device(outstanding, weights)
            router.begin((BatchId(1, number), 0), route)
            outstanding[route[0]] += 1
            open_attempts.append((number, route))
            while open_attempts and draw.random() < 0.45:
                ended, its_route = open_attempts.pop(draw.randrange(len(open_attempts)))
                router.end((BatchId(1, ended), 0))
                outstanding[its_route[0]] -= 1


def test_the_default_window_and_the_span_are_the_clients(tmp_path: Path) -> None:
    tiny = make_tiny_plan(tmp_path)
    plan = place(tiny, [[Replica(device=n) for n in names] for names in ("ab", "c", "d")], "c")
    watch = FeedWatch("client", window=None)
    watch.take_plan(plan, now=0.0)
    stages = [StageChoice(k, k + 1, tuple(names)) for k, names in enumerate(("ab", "c", "d"))]
    assert watch.feed.window == default_window(stages) == 8
    assert client_sending.SPAN_IN_WINDOWS == SPAN_IN_WINDOWS


def test_the_newest_batch_stays_within_the_span_of_the_oldest() -> None:
    """A replica that all but stands still holds up the client, not only its own batches."""
    problem, _ = line_of(1.0)
    stuck = replace(problem.devices[0], name="stuck", segment_ms=(2000.0,))
    problem = replace(problem, devices=(problem.devices[0], stuck))
    stages = (StageChoice(0, 1, ("pi-0", "stuck")),)
    seen = simulate(problem, stages, window=4, weights={"pi-0": 1.0, "stuck": 1.0})
    assert seen.batches_per_s <= SPAN_IN_WINDOWS * 4 / 2.0


def test_the_rates_of_replicas_make_the_rate_of_their_stage() -> None:
    for seed, kind in itertools.product(range(20), KINDS):
        problem, stages = random_plan(seed, kind)
        for stage in stages:
            assert sum(rates(problem, stage).values()) == pytest.approx(stage_rate(problem, stage))
