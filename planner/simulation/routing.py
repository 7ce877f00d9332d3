"""How the replicas of a stage share its batches: by the client's rule, here for predictions. Pure.

The client sends a batch to the device with the least outstanding work for its speed. In the long
run each device then gets a share in proportion to its speed, so a device's speed is its rate.
"""

from collections.abc import Mapping, Sequence

from contract.errors import PartitionError
from planner.cost_model import StageCosts, memory_bytes, stage_costs
from planner.problem import MB, Problem, StageChoice

BATCHES_PER_DEVICE = 2
"""The client's window unless told otherwise: so many batches in flight for each device."""


def default_window(stages: Sequence[StageChoice]) -> int:
    """Batches in flight of a client that was told no window."""
    return BATCHES_PER_DEVICE * sum(len(stage.devices) for stage in stages)


def next_device(outstanding: Mapping[str, int], speeds: Mapping[str, float]) -> str:
    """The device of a stage that the client gives the next batch to: `client/router.py`.

    ``speeds`` names the live replicas, ``outstanding`` the attempts that each has in hand.
    """
    return min(speeds, key=lambda name: ((outstanding.get(name, 0) + 1) / speeds[name], name))


def costs_on(problem: Problem, stage: StageChoice) -> dict[str, StageCosts]:
    """What a batch of the stage costs on each of its devices.

    Raises:
        PartitionError: the stage does not fit one of them.
    """
    found = {}
    for name in stage.devices:
        device = problem.device(name)
        costs = stage_costs(problem, device, stage.first, stage.end)
        if costs is None:
            packed = device.unpacked_ms is None
            needed = memory_bytes(problem, device, stage.first, stage.end, prepack=packed)
            raise PartitionError(
                f"segments {stage.first} to {stage.end - 1} on {name}: "
                f"{(device.memory_bytes or 0) / MB:.0f} MB free, {needed / MB:.0f} MB needed; "
                "give the device fewer segments or leave it out"
            )
        found[name] = costs
    return found


def rates(problem: Problem, stage: StageChoice) -> dict[str, float]:
    """Batches a second of every device of a stage; their sum is the stage's.

    Raises:
        PartitionError: the stage does not fit one of them.
    """
    return {
        name: 1e3 / max(costs.busy_ms, 1e-9) for name, costs in costs_on(problem, stage).items()
    }


def shares(problem: Problem, stage: StageChoice) -> dict[str, float]:
    """The part of the batches that every device of a stage gets; together 1.0.

    Raises:
        PartitionError: the stage does not fit one of them.
    """
    of_each = rates(problem, stage)
    whole = sum(of_each.values())
    return {name: rate / whole for name, rate in of_each.items()}


def speeds(problem: Problem, stage: StageChoice) -> dict[str, float]:
    """The rates as a plan says them: the fastest device of the stage has 1.0.

    Raises:
        PartitionError: the stage does not fit one of them.
    """
    of_each = rates(problem, stage)
    fastest = max(of_each.values())
    return {name: rate / fastest for name, rate in of_each.items()}
