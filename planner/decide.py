"""Decides where to cut and who computes what, and corrects itself by measuring what it chose.

A stage pays at its ends for what the whole model does not do there: an activation that cannot be
fused across the cut, a layout changed back, an output written. So the chosen stages are run on this
machine, beside the whole model in the same moments, the times of their segments corrected by that
ratio on every device, and the decision taken again, until it stays or time is up.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from planner.cost_model import batches_per_s, latency_ms
from planner.partition import partition
from planner.problem import Problem, Solution, StageChoice
from planner.progress import Progress, silent
from planner.rules import Objective, Rules

MAX_ITERATIONS = 5
MEASURING_S = 2.0

MIN_SHARE = 0.2
"""Of a stage's measured time that is its segments' in any case."""

StageTimer = Callable[[Sequence[tuple[int, int]]], Sequence[float]]
"""Times in ms of half-open ranges of segments, each run as the stage that it would be, all in the
same moments."""


@dataclass(frozen=True)
class Decision:
    """What was chosen, by which figures."""

    problem: Problem
    solution: Solution
    objective: Objective = "throughput"

    @classmethod
    def of(cls, problem: Problem, solution: Solution, objective: Objective) -> "Decision":
        """A solution by the figures of another problem; its bound is kept if it holds."""
        value, bound = value_of(problem, solution.stages, objective), solution.bound
        holds = max(value, bound) if objective == "throughput" else min(value, bound)
        return cls(problem, Solution(solution.stages, value, holds), objective)

    @property
    def rate(self) -> float:
        """Batches a second: of a full pipeline or, for the objective «latency», one at a time."""
        value = value_of(self.problem, self.stages, self.objective)
        return value if self.objective == "throughput" else 1e3 / value

    @property
    def stages(self) -> tuple[StageChoice, ...]:
        """The stages in order."""
        return self.solution.stages

    @property
    def boundaries(self) -> list[int]:
        """Segment boundaries from 0 to the number of segments."""
        return [0, *(stage.end for stage in self.stages)]


@dataclass(frozen=True)
class Correction:
    """What measured stages have taught. ``factors`` are of the segments' own times; a cut costs
    ``cut_byte_ms`` at each end for each byte, in ms of this machine."""

    factors: tuple[float, ...]
    cut_byte_ms: float = 0.0


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
    current = Decision(problem, solve(problem, rules), rules.objective)
    if time_stages is None:
        return current
    correction = Correction((1.0,) * problem.num_segments)
    deadline = time.monotonic() + budget_s
    tried: list[Decision] = []
    measured: set[tuple[int, ...]] = set()
    for iteration in range(MAX_ITERATIONS):
        boundaries = tuple(current.boundaries)
        # The whole model as one stage is what every time was taken in already.
        if boundaries not in measured and len(boundaries) > 2:
            progress("measuring the stages", iteration / MAX_ITERATIONS)
            measured.add(boundaries)
            ranges = [*pairwise(boundaries), (0, problem.num_segments)]
            times = time_stages(ranges)
            correction = correct(problem, correction, segment_ms, boundaries, times)
        corrected = with_correction(problem, correction, segment_ms)
        # What was chosen before, by figures that know its stages; and what is best by them now.
        again = solve(corrected, rules)
        value = value_of(corrected, current.stages, rules.objective)
        kept = Solution(current.stages, value, again.bound)
        tried.append(Decision(corrected, kept, rules.objective))
        if again.stages == current.stages or time.monotonic() > deadline:
            break
        current = Decision(corrected, again, rules.objective)
    progress("measuring the stages", 1.0)
    best = max if rules.objective == "throughput" else min
    return best(tried, key=lambda decision: decision.solution.value)


def correct(
    problem: Problem,
    before: Correction,
    segment_ms: Sequence[float],
    boundaries: Sequence[int],
    measured_ms: Sequence[float],
) -> Correction:
    """What stages say, measured beside the whole model. Pure.

    All stages together take longer than the whole: that is the price of the cuts, which grows with
    what is written and read there, so the same is assumed of cuts that were not measured. What is
    left of a stage's difference belongs to its segments.

    Args:
        problem: knows the bytes at every cut.
        before: what was learnt until now.
        segment_ms: this machine's time of each segment.
        boundaries: of the measured stages.
        measured_ms: times of the stages, and last of the whole model: it ran in the same moments,
            so that a machine that has become slower meanwhile does not look like slow stages.
    """
    *stages_ms, whole_ms = measured_ms
    ranges = list(pairwise(boundaries))
    pace = whole_ms / max(sum(segment_ms), 1e-9)
    own_ms = [ms / pace for ms in stages_ms]
    cut_bytes = [problem.cut_bytes(first) + problem.cut_bytes(end) for first, end in ranges]
    excess_ms = sum(own_ms) - sum(segment_ms)
    cut_byte_ms = before.cut_byte_ms
    if sum(cut_bytes):
        cut_byte_ms = max(0.0, excess_ms / sum(cut_bytes))
    factors = list(before.factors)
    for ms, size, (first, end) in zip(own_ms, cut_bytes, ranges, strict=True):
        known = sum(segment_ms[first:end])
        if known > 0:
            left_ms = max(ms - cut_byte_ms * size, MIN_SHARE * ms)
            factors[first:end] = [left_ms / known] * (end - first)
    return Correction(tuple(factors), cut_byte_ms)


def with_correction(
    problem: Problem, correction: Correction, segment_ms: Sequence[float]
) -> Problem:
    """The same problem with every device's times corrected, in proportion to its own speed."""

    def scaled(times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(ms * factor for ms, factor in zip(times, correction.factors, strict=True))

    here_ms = max(sum(segment_ms), 1e-9)
    return replace(
        problem,
        devices=tuple(
            replace(
                device,
                segment_ms=scaled(device.segment_ms),
                unpacked_ms=None if device.unpacked_ms is None else scaled(device.unpacked_ms),
                cut_byte_ms=correction.cut_byte_ms * sum(device.segment_ms) / here_ms,
            )
            for device in problem.devices
        ),
    )


def value_of(problem: Problem, stages: Sequence[StageChoice], objective: Objective) -> float:
    """What these stages reach: batches a second, or the ms of one batch alone."""
    return (batches_per_s if objective == "throughput" else latency_ms)(problem, stages)
