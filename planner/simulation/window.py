"""How many batches in flight a plan needs to reach its rate, by the simulation. Pure."""

from collections.abc import Sequence

from planner.cost_model import batches_per_s
from planner.problem import Problem, StageChoice
from planner.simulation.routing import default_window
from planner.simulation.simulate import Simulation, simulate

ENOUGH = 0.98
"""Of the rate that no window can pass: each batch more in flight only waits longer."""
LARGEST_FOR_EACH = 16
GROWTH = 1.5


def enough_window(problem: Problem, stages: Sequence[StageChoice]) -> Simulation:
    """The plan with the smallest window, from the client's default up, that keeps everyone busy.

    Unlike replicas need more than two for each device: by the client's rule a device that is ten
    times as slow gets its first batch when the fast one has ten in hand. Where no window up to 16
    for each device is enough, or as many as there can be in flight, the one that comes nearest.

    Raises:
        PartitionError: a stage does not fit one of its devices.
    """
    rate = batches_per_s(problem, stages)
    window = problem.possible_window(default_window(stages))
    devices = sum(len(stage.devices) for stage in stages)
    largest = problem.possible_window(LARGEST_FOR_EACH * devices)
    best = simulate(problem, stages, window)
    while best.batches_per_s < ENOUGH * rate and window < largest:
        window = min(largest, int(window * GROWTH) + 1)
        tried = simulate(problem, stages, window)
        if tried.batches_per_s > best.batches_per_s * 1.001:
            best = tried
    return best
