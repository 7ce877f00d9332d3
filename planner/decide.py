"""Decides where to cut and who computes what, and corrects itself by measuring what it chose.

A stage pays at its ends for what the whole model does not do there: an activation that cannot be
fused across the cut, a layout changed back, an output written. So the chosen stages are run on this
machine, beside the whole model in the same moments, the times of their segments corrected by that
ratio on every device, and the decision taken again, until it stays or time is up.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from planner.cost_model import batches_per_s, latency_ms
from planner.formulate import with_factors
from planner.partition import partition
from planner.problem import Problem, Solution, StageChoice
from planner.progress import Progress, silent
from planner.rules import Rules

MAX_ITERATIONS = 5
MEASURING_S = 2.0

StageTimer = Callable[[Sequence[tuple[int, int]]], Sequence[float]]
"""Times in ms of half-open ranges of segments, each run as the stage that it would be, all in the
same moments."""


@dataclass(frozen=True)
class Decision:
    """What was chosen, by which figures."""

    problem: Problem
    solution: Solution

    @classmethod
    def of(cls, problem: Problem, stages: tuple[StageChoice, ...], bound: float) -> "Decision":
        """These stages by the figures of ``problem``, and a bound of what others could reach."""
        rate = batches_per_s(problem, stages)
        return cls(problem, Solution(stages, rate, max(rate, bound)))

    @property
    def rate(self) -> float:
        """Batches a second by the cost model."""
        return batches_per_s(self.problem, self.stages)

    @property
    def stages(self) -> tuple[StageChoice, ...]:
        """The stages in order."""
        return self.solution.stages

    @property
    def boundaries(self) -> list[int]:
        """Segment boundaries from 0 to the number of segments."""
        return [0, *(stage.end for stage in self.stages)]


def decide(
    problem: Problem,
    rules: Rules,
    segment_ms: Sequence[float],
    time_stages: StageTimer | None = None,
    solve: Callable[[Problem, Rules], Solution] = partition,
    progress: Progress = silent,
    budget_s: float = MEASURING_S,
) -> Decision:
    """The best decision by figures that were corrected by measuring its own stages.

    Args:
        problem: the devices' own times.
        rules: what is asked for.
        segment_ms: this machine's time of each segment, which ``time_stages`` is compared with.
        time_stages: None takes the problem as it is.
        solve: the partitioner.
        progress: called as the work advances.
        budget_s: no further correction begins after so long.

    Raises:
        PartitionError: nothing that the rules allow is possible.
    """
    progress("deciding", 0.0)
    factors = [1.0] * problem.num_segments
    deadline = time.monotonic() + budget_s
    current = Decision(problem, solve(problem, rules))
    if time_stages is None:
        return current
    tried: list[Decision] = []
    measured: set[tuple[int, ...]] = set()
    for iteration in range(MAX_ITERATIONS):
        boundaries = tuple(current.boundaries)
        if boundaries not in measured:
            progress("measuring the stages", iteration / MAX_ITERATIONS)
            measured.add(boundaries)
            factors = correct(factors, segment_ms, boundaries, time_stages)
        corrected = with_factors(problem, factors)
        # What was chosen before, by figures that know its stages; and what is best by them now.
        again = solve(corrected, rules)
        tried.append(Decision(corrected, _revalue(corrected, current, again, rules)))
        if again.stages == current.stages or time.monotonic() > deadline:
            break
        current = Decision(corrected, again)
    progress("measuring the stages", 1.0)
    best = max if rules.objective == "throughput" else min
    return best(tried, key=lambda decision: decision.solution.value)


def correct(
    factors: Sequence[float],
    segment_ms: Sequence[float],
    boundaries: Sequence[int],
    time_stages: StageTimer,
) -> list[float]:
    """Factors that make the segments of each stage add up to what the stage takes.

    The whole model runs in the same moments, so that a machine that has become slower meanwhile
    does not look like a stage that is slow.
    """
    count = len(segment_ms)
    ranges = list(pairwise(boundaries))
    *stages, whole = time_stages([*ranges, (0, count)])
    pace = whole / max(sum(segment_ms), 1e-9)
    corrected = list(factors)
    for ms, (first, end) in zip(stages, ranges, strict=True):
        known = sum(segment_ms[first:end])
        if known > 0:
            corrected[first:end] = [ms / (pace * known)] * (end - first)
    return corrected


def _revalue(problem: Problem, chosen: Decision, best: Solution, rules: Rules) -> Solution:
    """The chosen stages by these figures, with the bound that the best by them has."""
    value = (batches_per_s if rules.objective == "throughput" else latency_ms)(
        problem, chosen.stages
    )
    return Solution(chosen.stages, value, best.bound)
