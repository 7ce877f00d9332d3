from planner.cost_model import batches_per_s
from planner.problem import DeviceCosts, Problem, RelayCosts, StageChoice
from planner.simulation.routing import default_window
from planner.simulation.simulate import simulate
from planner.simulation.window import ENOUGH, enough_window

FREE = RelayCosts(0.0, 0.0)


def replicas(*whole_ms: float) -> tuple[Problem, tuple[StageChoice, ...]]:
    devices = tuple(DeviceCosts(f"d{i}", (ms,), FREE) for i, ms in enumerate(whole_ms))
    stages = (StageChoice(0, 1, tuple(device.name for device in devices)),)
    return Problem(devices, (0,), (0,), (10, 10)), stages


def test_equal_devices_need_no_more_than_the_default() -> None:
    problem, stages = replicas(10.0, 10.0, 10.0)
    assert enough_window(problem, stages).window == default_window(stages)


def test_a_device_ten_times_as_slow_gets_work_only_in_a_larger_window() -> None:
    problem, stages = replicas(10.0, 100.0)
    small = simulate(problem, stages, default_window(stages))
    assert small.batches_per_s < ENOUGH * batches_per_s(problem, stages)
    enough = enough_window(problem, stages)
    assert enough.window > default_window(stages)
    assert enough.batches_per_s >= ENOUGH * batches_per_s(problem, stages)
