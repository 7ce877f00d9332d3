"""Balances stages by measuring them as they would run, which the whole model's times only predict.

A stage pays at its ends for what the whole model does not do there: an activation that cannot be
fused across the cut, a layout changed back, an output written. So the chosen stages are measured,
the times of their segments corrected to add up to that, and the cuts chosen again, until they stay
or time is up.
"""

import time
from dataclasses import dataclass, replace
from itertools import pairwise

from planner.balance import Method, partition
from planner.cost_model import stage_ms
from planner.graph import SegmentedGraph, edge_bytes
from planner.profiler import MIN_ROUNDS, Profile, time_stages
from planner.progress import Progress, silent

MAX_ITERATIONS = 6
NOISE = 0.05
"""Balances that differ by less are equal, and the one that carries fewer bytes is taken."""
MAX_ROUNDS = 9


@dataclass(frozen=True)
class Refined:
    """Boundaries, and a profile whose segments add up to the measured time of every stage."""

    boundaries: tuple[int, ...]
    profile: Profile


def refine(
    graph: SegmentedGraph,
    profile: Profile,
    num_stages: int,
    method: Method = "exact",
    budget_s: float = 2.0,
    progress: Progress = silent,
) -> Refined:
    """Choose boundaries, measure, correct, choose again; the best balanced of all that were tried.

    Raises:
        PartitionError: there are fewer segments than stages.
    """
    edges = edge_bytes(graph, profile.batch_size)
    deadline = time.monotonic() + budget_s
    tried: dict[tuple[int, ...], tuple[float, Profile]] = {}
    for iteration in range(MAX_ITERATIONS):
        boundaries = tuple(partition(profile.segment_ms, edges, num_stages, method, NOISE))
        if boundaries in tried or (tried and time.monotonic() > deadline):
            break
        progress("balancing the stages", iteration / MAX_ITERATIONS)
        profile, measured = correct(graph, profile, boundaries, budget_s)
        loads = [
            stage_ms(ms, edges[first], edges[end])
            for ms, (first, end) in zip(measured, pairwise(boundaries), strict=True)
        ]
        # A share, not a time: the machine may have slowed down since the last iteration.
        tried[boundaries] = (max(loads) / sum(loads), profile)
    progress("balancing the stages", 1.0)
    least = min(share for share, _ in tried.values())
    good = [bounds for bounds, (share, _) in tried.items() if share <= least * (1 + NOISE)]
    best = min(good, key=lambda bounds: sum(edges[cut] for cut in bounds))
    return Refined(best, tried[best][1])


def correct(
    graph: SegmentedGraph, profile: Profile, boundaries: tuple[int, ...], budget_s: float = 2.0
) -> tuple[Profile, list[float]]:
    """Measure the stages between ``boundaries`` and scale the times of their segments to fit.

    Returns:
        The corrected profile, and the median ms of every stage.
    """
    ranges = list(pairwise(boundaries))
    rounds = round(budget_s / 4 * 1e3 / max(profile.whole_ms, 1e-3))
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
    measured = time_stages(graph, ranges, profile.batch_size, profile.threads, rounds)
    segment_ms = list(profile.segment_ms)
    for ms, (first, end) in zip(measured, ranges, strict=True):
        known = sum(segment_ms[first:end])
        if known > 0:
            segment_ms[first:end] = [ms / known * value for value in segment_ms[first:end]]
        else:  # segments whose kernels were all fused into a neighbour's
            segment_ms[first:end] = [ms / (end - first)] * (end - first)
    return replace(profile, segment_ms=tuple(segment_ms)), measured
