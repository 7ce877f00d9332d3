"""Improves a plan by small changes: a cut moved, a device moved or swapped, stages cut or joined.

For problems too large for :mod:`planner.solver.exact`. Nothing is proven here. Pure; the same seed
gives the same plan unless time runs out first.
"""

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.cost_model import batches_per_s
from planner.problem import Problem, StageChoice
from planner.solver.exact import Form

ROUNDS = 60
SHARPNESS = 12
"""How much more the slowest stage counts than the others: times to this power are added up."""

Stages = tuple[StageChoice, ...]


@dataclass(frozen=True)
class Neighbourhood:
    """What the changes need: rates by device, then first and end segment, and the form.

    ``rates[name][first][end]`` is 0 where the stage does not fit.
    """

    problem: Problem
    form: Form
    rates: Mapping[str, Sequence[Sequence[float]]]

    def load(self, stages: Sequence[StageChoice]) -> float:
        """A smooth stand-in for the time of the bottleneck: less is better."""
        total = 0.0
        for stage in stages:
            each = [self.rates[name][stage.first][stage.end] for name in stage.devices]
            if not each or min(each) <= 0.0:
                return float("inf")
            total += sum(each) ** -SHARPNESS
        edges = [0, *(stage.end for stage in stages)]
        broker_ms = sum(self.problem.broker.edge_ms(self.problem.edge_bytes[e]) for e in edges)
        return float(total + (broker_ms / 1e3) ** SHARPNESS)

    def changes(self, stages: Stages) -> Iterator[Stages]:
        """All plans one change away; those that the form forbids are not among them."""
        if self.form.boundaries is None:
            yield from _moved_cuts(stages)
            if self.form.num_stages is None:
                yield from self._joined_and_cut(stages)
        used = {name for stage in stages for name in stage.devices}
        spare = [device.name for device in self.problem.devices if device.name not in used]
        yield from self._reassigned(stages, spare)

    def _joined_and_cut(self, stages: Stages) -> Iterator[Stages]:
        for index, (left, right) in enumerate(itertools.pairwise(stages)):
            if len(stages) > self.form.min_stages:
                devices = (left.devices + right.devices)[: None if self.form.replicas else 1]
                joined = StageChoice(left.first, right.end, devices)
                yield (*stages[:index], joined, *stages[index + 2 :])
        for index, stage in enumerate(stages):
            for cut in range(stage.first + 1, stage.end):
                for place in range(1, len(stage.devices)):
                    halves = stage.devices[:place], stage.devices[place:]
                    for front, back in (halves, halves[::-1]):
                        parts = (
                            StageChoice(stage.first, cut, front),
                            StageChoice(cut, stage.end, back),
                        )
                        yield (*stages[:index], *parts, *stages[index + 1 :])

    def _reassigned(self, stages: Stages, spare: Sequence[str]) -> Iterator[Stages]:
        used = sum(len(stage.devices) for stage in stages)
        for index, stage in enumerate(stages):
            if self.form.replicas and used < self.form.max_devices:
                for name in spare:
                    yield _with(stages, {index: (*stage.devices, name)})
            for name in stage.devices:
                others = tuple(other for other in stage.devices if other != name)
                for other in spare:
                    yield _with(stages, {index: (*others, other)})
                for place, target in enumerate(stages):
                    if place == index:
                        continue
                    if others and self.form.replicas:
                        yield _with(stages, {index: others, place: (*target.devices, name)})
                    for other in target.devices if place > index else ():
                        rest = tuple(x for x in target.devices if x != other)
                        yield _with(stages, {index: (*others, other), place: (*rest, name)})


def _moved_cuts(stages: Stages) -> Iterator[Stages]:
    for index, (left, right) in enumerate(itertools.pairwise(stages)):
        for cut in range(left.first + 1, right.end):
            if cut != left.end:
                parts = (
                    StageChoice(left.first, cut, left.devices),
                    StageChoice(cut, right.end, right.devices),
                )
                yield (*stages[:index], *parts, *stages[index + 2 :])


def _with(stages: Stages, devices: Mapping[int, tuple[str, ...]]) -> Stages:
    return tuple(
        StageChoice(stage.first, stage.end, devices.get(index, stage.devices))
        for index, stage in enumerate(stages)
    )


def improve(
    around: Neighbourhood, stages: Stages, deadline: float, enough: float, seed: int = 0
) -> Stages:
    """The best plan found from ``stages`` on, never a worse one.

    Climbs, shakes the best plan by a few random changes, climbs again.

    Args:
        around: the problem.
        stages: a feasible plan.
        deadline: by :func:`time.monotonic`.
        enough: batches a second that cannot be surpassed.
        seed: of the random changes.
    """
    generator = random.Random(seed)
    problem = around.problem
    best = _climb(around, stages, deadline)
    value = batches_per_s(problem, best)
    original = batches_per_s(problem, stages)
    if original > value:
        best, value = stages, original
    for _ in range(ROUNDS):
        if time.monotonic() > deadline or value >= enough * (1 - 1e-9):
            break
        shaken = best
        for _ in range(generator.randint(2, 4)):
            choices = [change for change in around.changes(shaken) if around.load(change) < 1e300]
            shaken = generator.choice(choices) if choices else shaken
        climbed = _climb(around, shaken, deadline)
        reached = batches_per_s(problem, climbed)
        if reached > value:
            best, value = climbed, reached
    return best


def _climb(around: Neighbourhood, stages: Stages, deadline: float) -> Stages:
    """The best change, as long as one helps."""
    load = around.load(stages)
    while time.monotonic() < deadline:
        found = min(around.changes(stages), key=around.load, default=stages)
        lower = around.load(found)
        if not lower < load * (1 - 1e-9):
            break
        stages, load = found, lower
    return stages
