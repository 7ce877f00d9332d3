"""What the service does about who is there: as little as will do."""

from pathlib import Path

import pytest

from contract.plan import Plan
from planner.watch.presence import View
from planner.watch.reaction import (
    Finding,
    Need,
    Rates,
    Way,
    choose_way,
    devices_of,
    is_same,
    look,
    question_id,
)
from tests.pipeline.fakes import place_on
from tests.tiny import make_tiny_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_tiny_plan(tmp_path, devices=("a", "b", "c"))


def view(up: str, gone: str = "", usable: str | None = None, long_gone: str = "") -> View:
    """Devices of one letter each."""
    return View(
        up=frozenset(up),
        usable=frozenset(up if usable is None else usable),
        gone=frozenset(gone + long_gone),
        long_gone=frozenset(long_gone),
        reachable=frozenset(up),
    )


def need(current: Plan, wanted: Plan | None, seen: View) -> Need:
    return look(current, wanted, seen).need


def test_all_there_is_nothing_to_do(plan: Plan) -> None:
    assert need(plan, plan, view("abc")) is Need.NOTHING


def test_devices_that_were_left_out_change_nothing_while_the_wanted_plan_runs(plan: Plan) -> None:
    assert need(plan, plan, view("abcdef")) is Need.NOTHING


def test_a_short_absence_is_waited_for(plan: Plan) -> None:
    assert need(plan, plan, view("ac")) is Need.NOTHING


def test_a_stage_without_a_device_asks_for_another_plan(plan: Plan) -> None:
    found = look(plan, plan, view("acd", gone="b"))
    assert found == Finding(Need.RECOVER, (1,), frozenset("acd"), "stage 1 has lost b")


def test_a_replica_carries_on(plan: Plan) -> None:
    twice = place_on(plan, ["a", ["b", "d"], "c"], "default")
    assert need(twice, twice, view("acd", gone="b")) is Need.NOTHING
    assert need(twice, twice, view("ac", gone="bd")) is Need.RECOVER


def test_one_of_two_replicas_that_is_only_briefly_away_is_waited_for(plan: Plan) -> None:
    twice = place_on(plan, ["a", ["b", "d"], "c"], "default")
    assert need(twice, twice, view("ac", gone="b")) is Need.NOTHING


def test_a_replica_that_stays_away_is_a_question_of_gain(plan: Plan) -> None:
    twice = place_on(plan, ["a", ["b", "d"], "c"], "default")
    assert need(twice, twice, view("acd", long_gone="b")) is Need.IMPROVE
    assert need(twice, twice, view("ac", long_gone="b")) is Need.NOTHING  # d may be back any moment


def test_the_wanted_plan_runs_again_when_all_of_its_devices_have_settled(plan: Plan) -> None:
    moved = place_on(plan, ["a", "d", "c"], "default")
    assert need(moved, plan, view("abcd")) is Need.RETURN
    assert need(moved, plan, view("abcd", usable="acd")) is Need.NOTHING  # b is just back
    assert need(moved, plan, view("acd", gone="b")) is Need.NOTHING


def test_a_device_more_is_a_question_of_gain_while_another_plan_runs(plan: Plan) -> None:
    moved = place_on(plan, ["a", "d", "c"], "default")
    found = look(moved, plan, view("acde", gone="b"))
    assert (found.need, found.pool) == (Need.IMPROVE, frozenset("acde"))


def test_a_device_that_is_back_serves_its_own_stage_at_once(plan: Plan) -> None:
    found = look(plan, plan, view("abcd", usable="acd", gone=""))
    assert found.need is Need.NOTHING
    assert "b" in found.pool


def test_a_flapping_spare_is_not_called_upon(plan: Plan) -> None:
    assert look(plan, plan, view("acd", gone="b", usable="ac")).pool == frozenset("ac")


@pytest.mark.parametrize(
    ("rates", "way"),
    [
        (Rates(0.0, 90.0, 95.0, 100.0), Way.MOVE),
        (Rates(0.0, 79.0, 95.0, 100.0), Way.KNOWN),
        (Rates(0.0, 79.0, 94.0, 100.0), Way.NEW),
        (Rates(0.0, None, None, 100.0), Way.NEW),
        (Rates(0.0, 10.0, None, None), Way.MOVE),
        (Rates(0.0, 0.0, 0.0, 0.0), Way.STAY),
        (Rates(0.0, None, None, None), Way.STAY),
    ],
)
def test_a_plan_that_does_not_run_is_replaced_by_the_least_change(rates: Rates, way: Way) -> None:
    assert choose_way(Need.RECOVER, rates) is way


@pytest.mark.parametrize(
    ("rates", "way"),
    [
        (Rates(100.0, None, 114.0, 114.0), Way.STAY),
        (Rates(100.0, None, 116.0, 116.0), Way.KNOWN),
        (Rates(100.0, None, None, 200.0), Way.NEW),
    ],
)
def test_a_plan_that_runs_is_replaced_only_for_a_gain(rates: Rates, way: Way) -> None:
    assert choose_way(Need.IMPROVE, rates) is way


def test_the_same_question_is_known_again(plan: Plan) -> None:
    asked = look(plan, plan, view("acd", gone="b"))
    assert question_id(plan, asked) == question_id(plan, look(plan, plan, view("dca", gone="b")))
    assert question_id(plan, asked) != question_id(plan, look(plan, plan, view("ac", gone="b")))


def test_the_same_stages_on_the_same_devices_are_the_same_plan(plan: Plan) -> None:
    told = plan.model_copy(update={"prediction": None, "verdict": None})
    assert is_same(plan, told)
    assert not is_same(plan, place_on(plan, ["a", "b", "d"], "default"))
    assert not is_same(plan, None)
    assert is_same(None, None)
    assert devices_of(plan) == ["a", "b", "c"]
