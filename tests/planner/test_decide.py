"""Decisions that are corrected by measuring what was chosen."""

from collections.abc import Callable, Sequence

import pytest

from planner.cost_model import batches_per_s
from planner.decide import correct, decide
from planner.problem import DeviceCosts, Problem, RelayCosts
from planner.profiler import profile_segments, time_stages
from planner.rules import Rules
from tests.planner.conftest import Cached

FREE = RelayCosts(0.0, 0.0)


def equal_devices(segment_ms: Sequence[float], count: int) -> Problem:
    segments = len(segment_ms)
    return Problem(
        devices=tuple(DeviceCosts(f"d{i}", tuple(segment_ms), FREE) for i in range(count)),
        weight_bytes=(0,) * segments,
        activation_bytes=(0,) * segments,
        edge_bytes=(0,) * (segments + 1),
    )


def dearer_where_cut(segment_ms: Sequence[float], extra: dict[int, float], pace: float = 1.0):  # type: ignore[no-untyped-def]
    """Stages that cost more at some cuts than their segments say, on a machine of another pace."""

    def measure(ranges: Sequence[tuple[int, int]]) -> list[float]:
        return [
            pace * (sum(segment_ms[first:end]) + extra.get(first, 0.0) + extra.get(end, 0.0))
            for first, end in ranges
        ]

    return measure


def test_a_cut_that_turns_out_dear_is_given_up() -> None:
    segment_ms = [5.0, 1.0, 4.0]  # the balance is at 1, but a cut there costs 4 ms at both ends
    rules = Rules(strategy="pipeline", num_stages=2)
    problem = equal_devices(segment_ms, 2)
    assert decide(problem, rules, segment_ms).boundaries == [0, 1, 3]
    decision = decide(problem, rules, segment_ms, dearer_where_cut(segment_ms, {1: 4.0}))
    assert decision.boundaries == [0, 2, 3]
    assert decision.rate == pytest.approx(1e3 / 6.0)


def test_a_machine_that_has_become_slower_meanwhile_changes_nothing() -> None:
    segment_ms = [5.0, 1.0, 4.0]
    measure = dearer_where_cut(segment_ms, {}, pace=1.7)
    decision = decide(
        equal_devices(segment_ms, 2), Rules("pipeline", num_stages=2), segment_ms, measure
    )
    assert decision.boundaries == [0, 1, 3]
    assert decision.rate == pytest.approx(1e3 / 5.0)
    assert decision.solution.is_optimal


def test_corrections_apply_to_every_device_by_its_own_times() -> None:
    segment_ms = [2.0, 2.0]
    slow = DeviceCosts("slow", (8.0, 8.0), FREE, unpacked_ms=(10.0, 10.0))
    fast = DeviceCosts("fast", (2.0, 2.0), FREE)
    problem = Problem((slow, fast), (0, 0), (0, 0), (0, 0, 0))
    measure = dearer_where_cut(segment_ms, {1: 1.0})
    decision = decide(problem, Rules("pipeline", num_stages=2), segment_ms, measure)
    corrected = {device.name: device for device in decision.problem.devices}
    assert corrected["slow"].segment_ms == pytest.approx((12.0, 12.0))
    assert corrected["slow"].unpacked_ms == pytest.approx((15.0, 15.0))
    assert decision.rate == pytest.approx(batches_per_s(decision.problem, decision.stages))


def test_segments_add_up_to_what_their_stage_takes() -> None:
    segment_ms = [1.0, 3.0, 4.0]
    measure = dearer_where_cut(segment_ms, {2: 1.0}, pace=2.0)
    factors = correct([1.0] * 3, segment_ms, [0, 2, 3], measure)
    assert factors == pytest.approx([5 / 4, 5 / 4, 5 / 4])


def test_a_real_model_is_measured_beside_its_stages(small: Callable[[str], Cached]) -> None:
    graph = small("Plain").graph
    profile = profile_segments(graph, batch_size=2, budget_s=0.1)

    def measure(ranges: Sequence[tuple[int, int]]) -> list[float]:
        return time_stages(graph, ranges, 2, 1, rounds=5)

    decision = decide(
        equal_devices(profile.segment_ms, 3),
        Rules("pipeline", num_stages=3),
        profile.segment_ms,
        measure,
    )
    assert len(decision.stages) == 3
    assert decision.boundaries[-1] == graph.num_segments
    assert 0 < decision.rate <= decision.solution.bound * (1 + 1e-9)
