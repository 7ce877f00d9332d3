"""What could be done with the devices that are left, and what each would reach. Pure."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from contract.errors import PartitionError
from contract.plan import Codec, EdgeBroker, Plan, place
from planner.choose import codec_of_edges
from planner.cost_model import batches_per_s, stage_rate
from planner.partition import partition
from planner.predict import predict, replicas
from planner.problem import Problem, Solution, StageChoice
from planner.rules import Rules

MOST_WAYS = 5000
"""So many ways to give spare devices to stages are compared; there are more only for several stages
lost at once among many spares."""


def ranges_of(plan: Plan) -> list[tuple[int, int]]:
    """The half-open ranges of segments of a plan's stages."""
    return [(stage.first_segment, stage.end_segment) for stage in plan.stages]


def as_it_runs(plan: Plan, live: frozenset[str]) -> tuple[StageChoice, ...]:
    """The plan's stages with those of its devices that are live; a stage may have none."""
    return tuple(
        StageChoice(first, end, tuple(r.device for r in spot.replicas if r.device in live))
        for (first, end), spot in zip(ranges_of(plan), plan.placement, strict=True)
    )


def rate_of(problem: Problem, stages: Sequence[StageChoice]) -> float:
    """Images a second; 0 where a stage has no device, or one that cannot hold it."""
    if not all(stage.devices for stage in stages):
        return 0.0
    return batches_per_s(problem, stages) * problem.batch_size


def moved(
    problem: Problem, plan: Plan, live: frozenset[str], spares: Sequence[str]
) -> tuple[StageChoice, ...] | None:
    """The same stages, each that has no live device on the spare one that suits best.

    Args:
        problem: knows all devices, with the codecs of the plan's cuts.
        plan: the one that runs.
        live: its devices that are there.
        spares: devices that it does not use.

    Returns:
        None where the spares are too few or too small.
    """
    stages = as_it_runs(plan, live)
    empty = [index for index, stage in enumerate(stages) if not stage.devices]
    best: tuple[float, float, tuple[StageChoice, ...]] | None = None
    ways = itertools.permutations(sorted(spares), len(empty))
    for chosen in itertools.islice(ways, MOST_WAYS):
        filled = list(stages)
        for index, device in zip(empty, chosen, strict=True):
            filled[index] = replace(stages[index], devices=(device,))
        rate = rate_of(problem, filled)
        # Among equals, the quickest devices for what is lost: the bottleneck may be elsewhere.
        inner = min((stage_rate(problem, filled[index]) for index in empty), default=0.0)
        if rate > 0 and (best is None or (rate, inner) > best[:2]):
            best = (rate, inner, tuple(filled))
    return None if best is None else best[2]


def on_devices(problem: Problem, boundaries: tuple[int, ...]) -> Solution | None:
    """The best devices for these cuts; None where they do not fit."""
    try:
        return partition(problem, Rules(boundaries=boundaries))
    except PartitionError:
        return None


def placed(
    plan: Plan,
    problem: Problem,
    solution: Solution,
    cluster: str,
    based_on: str,
    keep: Plan | None = None,
    edge_brokers: Sequence[EdgeBroker] = (),
) -> Plan:
    """A built plan on the devices of a solution, with what it is expected to do there.

    Args:
        plan: built; its cuts are those of the solution.
        problem: what everything costs, with the codecs of the plan's cuts.
        solution: who serves what.
        cluster: where.
        based_on: where the figures come from.
        keep: what this plan says of a device is kept: other settings would make it load anew.
        edge_brokers: brokers of single edges.

    Raises:
        PartitionError: a stage does not fit its device.
        PlanError: the solution is of other stages.
    """
    settled = {r.device: r for spot in keep.placement for r in spot.replicas} if keep else {}
    devices = [
        tuple(settled.get(replica.device, replica) for replica in stage)
        for stage in replicas(problem, solution)
    ]
    codecs = codec_of_edges(problem, codecs_of_cuts(plan))
    prediction = predict(problem, solution, None, codecs, based_on)
    there = place(plan, devices, cluster, edge_brokers)
    return there.model_copy(update={"prediction": prediction, "verdict": None})


def codecs_of_cuts(plan: Plan) -> dict[int, Codec]:
    """How the plan's activations travel, by the segment boundary of each cut."""
    return {stage.end_segment: stage.codec for stage in plan.stages[:-1]}
