"""Two simple ways to share out the segments, to compare with. Pure.

Both give every stage one device and ask for no optimum: they are what one would do by hand.
"""

import itertools
from collections.abc import Sequence

from planner.cost_model import stage_costs
from planner.problem import DeviceCosts, Problem, StageChoice
from planner.solver.exact import Form

Stages = tuple[StageChoice, ...]


def greedy(problem: Problem, form: Form) -> Stages | None:
    """Shares proportional to speed: the fastest device first, each takes its share of the work.

    Tries all devices, then ever fewer of the fastest, until every stage fits its device. None if
    that never happens.
    """
    ordered = sorted(problem.devices, key=lambda device: sum(device.segment_ms))
    for used in _numbers_of_stages(problem, form):
        devices = ordered[:used]
        boundaries = form.boundaries or _proportional(problem, devices)
        stages = _one_device_each(boundaries, devices)
        if stages_fit(problem, stages):
            return stages
    return None


def even(problem: Problem, form: Form) -> Stages | None:
    """As many segments for every stage, devices in the order given.

    Tries as many stages as there are devices, then ever fewer; None if none of them fits.
    """
    for used in _numbers_of_stages(problem, form):
        count = problem.num_segments
        boundaries = form.boundaries or [index * count // used for index in range(used + 1)]
        stages = _one_device_each(boundaries, problem.devices[:used])
        if stages_fit(problem, stages):
            return stages
    return None


def stages_fit(problem: Problem, stages: Sequence[StageChoice]) -> bool:
    """Whether every device can hold its stage."""
    return all(
        stage_costs(problem, problem.device(name), stage.first, stage.end) is not None
        for stage in stages
        for name in stage.devices
    )


def _numbers_of_stages(problem: Problem, form: Form) -> Sequence[int]:
    if form.num_stages is not None:
        return [form.num_stages]
    most = min(form.max_devices, problem.num_segments)
    return range(most, max(1, form.min_stages) - 1, -1)


def _one_device_each(boundaries: Sequence[int], devices: Sequence[DeviceCosts]) -> Stages:
    return tuple(
        StageChoice(first, end, (device.name,))
        for (first, end), device in zip(itertools.pairwise(boundaries), devices, strict=True)
    )


def _proportional(problem: Problem, devices: Sequence[DeviceCosts]) -> list[int]:
    """Close a stage where the work done is nearest to the share, by speed, of the devices so far.

    Work is the first (fastest) device's time; every later stage is left at least one segment.
    """
    count = problem.num_segments
    before = [0.0, *itertools.accumulate(devices[0].segment_ms)]
    speeds = [1.0 / max(sum(device.segment_ms), 1e-9) for device in devices]
    shares = list(itertools.accumulate(speeds))
    boundaries = [0]
    for stage in range(1, len(devices)):
        target = before[-1] * shares[stage - 1] / shares[-1]
        candidates = range(boundaries[-1] + 1, count - (len(devices) - stage) + 1)
        boundaries.append(min(candidates, key=lambda end: abs(before[end] - target)))
    return [*boundaries, count]
