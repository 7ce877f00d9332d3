"""What a kernel takes, from the times of many runs."""

import pytest

from shards.timing import mean_of_ordinary_runs


def test_a_short_kernel_that_is_stopped_now_and_then_counts_with_its_stops() -> None:
    runs = [1.0, 40.0] * 4 + [9.0, 32.0]  # the same time in all, stopped at another place
    assert mean_of_ordinary_runs(runs, 2) == pytest.approx([2.6, 38.4])


def test_a_run_that_something_else_disturbed_does_not_count() -> None:
    runs = [1.0, 4.0] * 5 + [50.0, 4.0]
    assert mean_of_ordinary_runs(runs, 2) == [1.0, 4.0]


def test_a_single_run_is_taken_as_it_is() -> None:
    assert mean_of_ordinary_runs([3.0, 1.0], 2) == [3.0, 1.0]
