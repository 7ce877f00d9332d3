"""What is said when nothing fits, and that the advice holds."""

from dataclasses import replace

import pytest

from contract.errors import PartitionError
from planner.partition import partition
from planner.problem import MB, DeviceCosts, Problem
from planner.rules import Rules
from tests.planner.problems import device, problem


def given(weights_mb: list[int], **memory_mb: int) -> Problem:
    """Devices with so much memory; weights count once, nothing else takes any."""
    times = (1.0,) * len(weights_mb)
    devices = [
        device(name.replace("_", "-"), times, memory_bytes=size * MB, packing_factor=1.0)
        for name, size in memory_mb.items()
    ]
    weights = tuple(size * MB for size in weights_mb)
    return problem(devices, (0,) * (len(weights_mb) + 1), weight_bytes=weights)


def refusal(asked: Problem, rules: Rules) -> str:
    with pytest.raises(PartitionError) as caught:
        partition(asked, rules)
    return str(caught.value)


def with_memory(asked: Problem, name: str, more_mb: int) -> Problem:
    def grown(one: DeviceCosts) -> DeviceCosts:
        assert one.memory_bytes is not None
        return replace(one, memory_bytes=one.memory_bytes + more_mb * MB)

    devices = tuple(grown(one) if one.name == name else one for one in asked.devices)
    return replace(asked, devices=devices)


def test_a_whole_model_that_is_too_large_names_the_nearest_device_and_the_stages_that_fit() -> None:
    asked = given([100, 100, 112], pi_4=240, pi_zero=120)
    said = refusal(asked, Rules(strategy="single"))
    assert said == (
        "segments 0 to 2 need 312 MB on pi-4, 240 MB free: use 2 stages, or give pi-4 72 MB more"
    )
    assert partition(asked, Rules(strategy="pipeline", num_stages=2)).value > 0
    assert partition(with_memory(asked, "pi-4", 72), Rules(strategy="single")).value > 0
    refusal(with_memory(asked, "pi-4", 71), Rules(strategy="single"))


def test_a_segment_that_fits_nowhere_is_named_by_its_index() -> None:
    said = refusal(given([10, 500, 10], pi_4=240, pi_zero=120), Rules())
    assert said.startswith("segment 1 alone needs 500 MB on pi-4, 240 MB free")
    assert said.endswith("it cannot be cut further: give pi-4 260 MB more")


def test_too_few_stages_say_how_many_would_do() -> None:
    asked = given([100] * 6, **{f"pi_{i}": 200 for i in range(5)})
    said = refusal(asked, Rules(num_stages=2))
    assert "segments 0 to 2 need 300 MB on pi-" in said
    assert "use 3 stages" in said
    assert partition(asked, Rules(num_stages=3)).value > 0


def test_too_many_stages_for_the_devices_that_can_hold_one_say_how_many_would_do() -> None:
    asked = given([50] * 4, pi_4=400, pi_5=400, pi_zero=40)
    said = refusal(asked, Rules(strategy="pipeline", num_stages=3))
    assert "on pi-zero, 40 MB free: use 2 stages" in said
    assert "give pi-zero 10 MB more" in said


def test_cuts_by_hand_that_leave_a_stage_too_large_ask_for_finer_ones() -> None:
    asked = given([100] * 4, pi_4=240, pi_zero=120)
    said = refusal(asked, Rules(boundaries=(0, 3, 4)))
    assert said.startswith("segments 0 to 2 need 300 MB on pi-4, 240 MB free")
    assert "cut it more finely" in said


def test_cuts_by_hand_whose_stages_fit_only_the_same_device_say_what_another_lacks() -> None:
    asked = given([100] * 4, pi_4=240, pi_zero=120)
    said = refusal(asked, Rules(boundaries=(0, 2, 4)))
    assert "need 200 MB on pi-zero, 120 MB free" in said
    assert said.endswith("add 1 more like pi-4, or give pi-zero 80 MB more") or said.endswith(
        "give pi-zero 80 MB more"
    )


def test_too_small_a_fleet_is_told_how_many_devices_more() -> None:
    asked = given([100] * 4, pi_4=240)
    said = refusal(asked, Rules())
    assert "add 1 more like pi-4" in said
    assert "give pi-4 160 MB more" in said


def test_a_limit_on_devices_that_is_too_low_says_how_many_to_allow() -> None:
    asked = given([100] * 4, pi_4=240, pi_5=240, pi_6=240)
    assert "allow 2 devices" in refusal(asked, Rules(max_devices=1))
    assert partition(asked, Rules(max_devices=2)).value > 0


def test_even_stages_that_fail_on_one_device_say_which_to_drop() -> None:
    asked = given([100] * 4, pi_zero=120, pi_4=240, pi_5=240)
    said = refusal(asked, Rules(method="even", strategy="pipeline", num_stages=2))
    assert said.startswith("segments 0 to 1 need 200 MB on pi-zero, 120 MB free: use 3 stages")
    assert "drop pi-zero" in said
    without = replace(asked, devices=asked.devices[1:])
    assert partition(without, Rules(method="even", strategy="pipeline", num_stages=2)).value > 0


def test_no_devices_at_all_are_refused_in_words() -> None:
    asked = replace(given([1, 1], pi=1), devices=())
    assert "device" in refusal(asked, Rules())


def test_unpacked_weights_are_counted_where_a_device_can_do_without_packing() -> None:
    asked = given([100, 100], pi_4=150)
    devices = (replace(asked.devices[0], packing_factor=2.0, unpacked_ms=(2.0, 2.0)),)
    said = refusal(replace(asked, devices=devices), Rules(strategy="single"))
    assert "need 200 MB on pi-4, 150 MB free" in said


def test_all_who_lack_memory_are_named_and_giving_it_to_them_is_enough() -> None:
    asked = given([100, 100, 100], pi_4=80, pi_5=90, pi_6=150)
    said = refusal(asked, Rules(strategy="pipeline", num_stages=3))
    assert "give pi-4 20 MB and pi-5 10 MB more" in said or (
        "give pi-5 10 MB and pi-4 20 MB more" in said
    )
    helped = with_memory(with_memory(asked, "pi-4", 20), "pi-5", 10)
    assert partition(helped, Rules(strategy="pipeline", num_stages=3)).value > 0
