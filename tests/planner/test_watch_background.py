"""Planning beside the loop: its answer, its errors, and that it can be told to leave off."""

import threading

import pytest

from contract.errors import PartitionError, ShardlineError
from planner.progress import Progress
from planner.watch.background import Background
from tests.conftest import eventually


def test_the_answer_is_there_when_the_work_is_done() -> None:
    go_on = threading.Event()
    work = Background(lambda _progress: go_on.wait(10))
    assert not work.is_done
    go_on.set()
    eventually(lambda: work.is_done, "the work is done")
    assert work.result() is True
    assert not work.is_left_off


def test_errors_of_ours_come_out_as_they_are() -> None:
    def fail(_progress: Progress) -> None:
        raise PartitionError("too small")

    with pytest.raises(PartitionError, match="too small"):
        Background(fail).result()


def test_any_other_error_ends_the_work_and_not_the_service() -> None:
    def fail(_progress: Progress) -> None:
        raise ZeroDivisionError("a fault of ours")

    with pytest.raises(ShardlineError, match="ZeroDivisionError: a fault of ours"):
        Background(fail).result()


def test_work_that_is_left_off_ends_at_its_next_step_and_says_nothing() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def plan(progress: Progress) -> str:
        begun.set()
        go_on.wait(10)
        progress("the next step", 0.5)
        return "an answer"

    work = Background(plan)
    assert begun.wait(10)
    work.leave_off()
    assert not work.is_done
    go_on.set()
    assert work.result() is None
    assert work.is_left_off  # nobody may take this for «there is nothing better»
