"""Decisions that are corrected by measuring what was chosen."""

from collections.abc import Callable, Sequence

import pytest

from planner.cost_model import stage_costs
from planner.decide import Correction, correct, decide, with_correction
from planner.problem import DeviceCosts, Problem, RelayCosts
from planner.profiler import profile_segments, time_stages
from planner.rules import Rules
from tests.planner.conftest import Cached

FREE = RelayCosts(0.0, 0.0)


def equal_devices(
    segment_ms: Sequence[float], count: int, edge_bytes: tuple[int, ...] | None = None
) -> Problem:
    segments = len(segment_ms)
    return Problem(
        devices=tuple(DeviceCosts(f"d{i}", tuple(segment_ms), FREE) for i in range(count)),
        weight_bytes=(0,) * segments,
        activation_bytes=(0,) * segments,
        edge_bytes=edge_bytes or (0,) * (segments + 1),
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
    edge_bytes = (0, 4000, 100, 0)  # as a cut through much data does
    rules = Rules(strategy="pipeline", num_stages=2)
    problem = equal_devices(segment_ms, 2, edge_bytes)
    assert decide(problem, rules, segment_ms).boundaries == [0, 1, 3]
    measure = dearer_where_cut(segment_ms, {1: 4.0, 2: 0.1})
    decision = decide(problem, rules, segment_ms, measure)
    assert decision.boundaries == [0, 2, 3]
    assert decision.rate == pytest.approx(1e3 / 6.1)


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
    problem = Problem((slow, fast), (0, 0), (0, 0), (0, 500, 0))
    learnt = correct(
        problem, Correction((1.0, 1.0)), segment_ms, [0, 1, 2], [2 * 3.5, 2 * 2.5, 2 * 4.0]
    )
    # The whole took twice the time: so do the stages. 2 ms are the price of the cut's two ends.
    assert learnt.cut_byte_ms == pytest.approx(1.0 / 500)
    assert learnt.factors == pytest.approx((1.25, 0.75))
    corrected = {d.name: d for d in with_correction(problem, learnt, segment_ms).devices}
    assert corrected["slow"].segment_ms == pytest.approx((10.0, 6.0))
    assert corrected["slow"].unpacked_ms == pytest.approx((12.5, 7.5))
    assert corrected["slow"].cut_byte_ms == pytest.approx(4 * learnt.cut_byte_ms)
    assert corrected["fast"].segment_ms == pytest.approx((2.5, 1.5))


def test_the_corrected_stages_take_what_was_measured() -> None:
    segment_ms = [1.0, 3.0, 4.0]
    problem = equal_devices(segment_ms, 2, (10, 300, 100, 10))
    measure = dearer_where_cut(segment_ms, {2: 1.0}, pace=2.0)
    times = measure([(0, 2), (2, 3), (0, 3)])
    learnt = correct(problem, Correction((1.0,) * 3), segment_ms, [0, 2, 3], times)
    corrected = with_correction(problem, learnt, segment_ms)
    for first, end in ((0, 2), (2, 3)):
        costs = stage_costs(corrected, corrected.devices[0], first, end)
        assert costs is not None
        assert costs.compute_ms == pytest.approx(5.0)


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
