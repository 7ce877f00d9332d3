"""The partitioners against brute force."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import PartitionError
from planner.balance import bottleneck_ms, partition, stage_times
from planner.cost_model import relay_ms, stage_ms

times = st.lists(st.floats(0.01, 50), min_size=1, max_size=9)
sizes = st.lists(st.integers(1, 5_000_000), min_size=10, max_size=10)


def all_partitions(segments: int, stages: int) -> list[list[int]]:
    return [[0, *cuts, segments] for cuts in itertools.combinations(range(1, segments), stages - 1)]


@given(times, sizes, st.integers(1, 5))
def test_exact_has_the_smallest_bottleneck_and_then_the_fewest_bytes(
    segment_ms: list[float], edge_bytes: list[int], stages: int
) -> None:
    stages = min(stages, len(segment_ms))
    edge_bytes = edge_bytes[: len(segment_ms) + 1]
    chosen = partition(segment_ms, edge_bytes, stages, "exact")
    every = all_partitions(len(segment_ms), stages)
    assert chosen in every
    best = min(bottleneck_ms(segment_ms, edge_bytes, bounds) for bounds in every)
    assert bottleneck_ms(segment_ms, edge_bytes, chosen) == pytest.approx(best, rel=1e-9)


def test_equal_bottlenecks_are_decided_by_the_bytes_carried() -> None:
    # The first segment decides the bottleneck wherever the rest is cut.
    segment_ms = [100.0, 1.0, 1.0, 1.0, 1.0]
    edge_bytes = [10, 10, 900_000, 20, 900_000, 10]
    assert partition(segment_ms, edge_bytes, 3, "exact") == [0, 1, 3, 5]


def test_relaying_moves_a_cut_to_a_smaller_tensor() -> None:
    segment_ms = [10.0, 0.5, 9.5]
    assert partition(segment_ms, [0, 10, 10, 0], 2, "exact") == [0, 1, 3]
    assert partition(segment_ms, [0, 5_000_000, 10, 0], 2, "exact") == [0, 2, 3]


@given(times, sizes, st.integers(1, 5), st.sampled_from(["exact", "greedy", "even"]))
def test_every_method_gives_stages_that_are_not_empty(
    segment_ms: list[float], edge_bytes: list[int], stages: int, method: str
) -> None:
    stages = min(stages, len(segment_ms))
    bounds = partition(segment_ms, edge_bytes[: len(segment_ms) + 1], stages, method)  # type: ignore[arg-type]
    assert len(bounds) == stages + 1
    assert bounds[0] == 0
    assert bounds[-1] == len(segment_ms)
    assert all(first < end for first, end in itertools.pairwise(bounds))


def test_greedy_balances_time_and_even_balances_segments() -> None:
    segment_ms = [9.0, 1.0, 1.0, 1.0, 6.0]
    assert partition(segment_ms, [0] * 6, 2, "greedy") == [0, 1, 5]
    assert partition(segment_ms, [0] * 6, 2, "even") == [0, 2, 5]


def test_more_stages_than_segments_say_how_many_cuts_there_are() -> None:
    with pytest.raises(PartitionError, match="4 stages need 3 cut points, the model has 2"):
        partition([1.0, 1.0, 1.0], [0] * 4, 4)


def test_no_stages_are_refused() -> None:
    with pytest.raises(PartitionError, match="at least 1"):
        partition([1.0], [0, 0], 0)


@pytest.mark.parametrize(
    ("size_bytes", "measured_ms"), [(75_000, 0.21), (300_000, 0.54), (1_600_000, 2.4)]
)
def test_the_relay_line_goes_through_the_measurements(size_bytes: int, measured_ms: float) -> None:
    assert relay_ms(size_bytes) == pytest.approx(measured_ms, rel=0.02)


def test_a_stage_pays_for_receiving_computing_and_sending() -> None:
    assert stage_ms(5.0, 300_000, 300_000) == pytest.approx(5.0 + relay_ms(300_000))
    assert stage_times([1.0, 2.0], [0, 0, 0], [0, 1, 2])[1] == pytest.approx(2.0 + relay_ms(0))
