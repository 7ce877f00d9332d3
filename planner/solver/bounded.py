"""Problems too large to be solved exactly: a good plan and a proven bound within a time.

From above: the fractional bound, and the exact answer for devices grouped to few kinds, each group
with the best of its members in every respect. From below: the exact answer for the worst of its
members, improved by local search. What lies between is halved by asking an integer solver.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from planner.cost_model import batches_per_s, broker_rate, client_rate, latency_ms
from planner.problem import DeviceCosts, Problem, Solution, StageChoice
from planner.solver.exact import (
    Form,
    fastest,
    is_exact_size,
    kinds_for_latency,
    kinds_for_rate,
    quickest,
)
from planner.solver.fractional import best_weights
from planner.solver.grouping import (
    Kind,
    best_of,
    pairs_of_states,
    similar_groups,
    stand_ins,
    worst_of,
)
from planner.solver.integer_program import ask
from planner.solver.local_search import Neighbourhood, improve
from planner.solver.spans import Spans, costs_of_all, make_spans

STEPS_A_SECOND = {best_of: 30_000_000, worst_of: 5_000_000}
"""Size of the exact search on groups for each second allowed, as pairs of states times spans. The
bound is worth more than one more plan to start from."""
SHARE_OF_SEARCH = 0.3
"""Of the time, for local search before the integer solver is asked."""
CLOSE = 1e-6
"""A smaller gap is not worth asking about: the solver's own tolerance is near."""

Stages = tuple[StageChoice, ...]


def rate_bound(problem: Problem, form: Form) -> float:
    """What no plan surpasses, in batches a second, found at once: devices as if divisible."""
    spans = make_spans(problem.num_segments, form.boundaries)
    kinds = kinds_for_rate(problem, spans)
    cap = min(client_rate(problem), broker_rate(problem, [0, problem.num_segments]))
    return min(cap, best_weights(kinds, spans, form.max_devices)[1]) if kinds else 0.0


def bounded_fastest(problem: Problem, form: Form, seconds: float) -> Solution | None:
    """A plan of a high rate and a proven upper bound; None if none is found.

    Args:
        problem: of any size.
        form: what a plan may look like.
        seconds: about how long, beyond the exact answers for grouped devices.
    """
    started = time.monotonic()
    spans = make_spans(problem.num_segments, form.boundaries)
    kinds = kinds_for_rate(problem, spans)
    if not kinds:
        return None
    bound = rate_bound(problem, form)
    starts: list[Stages] = []
    for stand_in in (best_of, worst_of):
        found = grouped(problem, form, spans, stand_in, STEPS_A_SECOND[stand_in] * seconds)
        if found is None:
            continue
        if stand_in is best_of:
            bound = min(bound, found.bound)
        starts.append(found.stages)
    around = Neighbourhood(problem, form, _rates_by_range(problem, spans))
    half = started + SHARE_OF_SEARCH * seconds
    best: Stages | None = None
    for start in starts:
        if batches_per_s(problem, start) > 0:
            tried = improve(around, start, max(half, time.monotonic() + 0.1), bound)
            if best is None or batches_per_s(problem, tried) > batches_per_s(problem, best):
                best = tried
    best, bound = _ask_between(problem, form, spans, kinds, around, best, bound, started + seconds)
    if best is None:
        return None
    value = batches_per_s(problem, best)
    best = without_the_needless(problem, best)
    return Solution(best, value, max(value, bound))


def without_the_needless(problem: Problem, stages: Stages) -> Stages:
    """Leave out the replicas, slowest first, without which the plan is as fast."""
    value = batches_per_s(problem, stages)
    ordered = sorted(problem.devices, key=lambda device: -sum(device.segment_ms))
    for device in ordered:
        fewer = tuple(
            replace(stage, devices=tuple(name for name in stage.devices if name != device.name))
            for stage in stages
        )
        if all(stage.devices for stage in fewer) and batches_per_s(problem, fewer) >= value:
            stages = fewer
    return stages


def _ask_between(
    problem: Problem,
    form: Form,
    spans: Spans,
    kinds: Sequence[Kind],
    around: Neighbourhood,
    best: Stages | None,
    bound: float,
    deadline: float,
) -> tuple[Stages | None, float]:
    """Halve what lies between plan and bound, as long as answers come.

    Where none comes in time, the question moves towards the bound, since what is far from possible
    is sooner refuted.
    """
    value = batches_per_s(problem, best) if best is not None else 0.0
    place, least = 0.5, value
    while bound - value > CLOSE * bound and time.monotonic() < deadline and place < 0.97:
        left = deadline - time.monotonic()
        target = max(least, value) + place * (bound - max(least, value))
        answer = ask(problem, form, spans, kinds, target, left / 2 if left > 0.5 else left)
        if answer.impossible:
            bound = min(bound, target)
        elif answer.stages is not None:
            found = improve(around, answer.stages, time.monotonic() + left / 20, bound)
            reached = batches_per_s(problem, found)
            if reached > value:
                best, value = found, reached
            else:
                break  # a plan by the solver's tolerance only
        else:
            place += (1 - place) / 2
    return best, bound


def grouped(
    problem: Problem,
    form: Form,
    spans: Spans,
    stand_in: Callable[[Sequence[DeviceCosts]], DeviceCosts],
    most_steps: float,
) -> Solution | None:
    """The exact answer with every group of similar devices replaced by equal ones."""

    def affordable(counts: Sequence[int]) -> bool:
        small = pairs_of_states(counts) * spans.count <= most_steps or not form.replicas
        return small and is_exact_size(counts, spans.count, form)

    groups = similar_groups(problem.devices, affordable)
    if groups is None:
        return None
    return fastest(replace(problem, devices=stand_ins(groups, stand_in)), form)


def _rates_by_range(problem: Problem, spans: Spans) -> dict[str, list[list[float]]]:
    """By device, then first and end segment: batches a second, 0 where no stage can be."""
    firsts = np.array(spans.nodes)[spans.first]
    ends = np.array(spans.nodes)[spans.end]
    found: dict[str, list[list[float]]] = {}
    for name, costs in costs_of_all(problem, spans).items():
        table = np.zeros((problem.num_segments + 1, problem.num_segments + 1))
        table[firsts, ends] = costs.rate
        found[name] = table.tolist()
    return found


def bounded_quickest(problem: Problem, form: Form) -> Solution | None:
    """A plan of small latency and a proven lower bound of it; None if none is found.

    The bound is the exact answer for groups of similar devices, each with the best of its members;
    the plans are those for the best and for the worst, on the true devices.
    """
    form = form.with_single_devices()
    spans = make_spans(problem.num_segments, form.boundaries)

    def affordable(counts: Sequence[int]) -> bool:
        return is_exact_size(counts, spans.count, form)

    if not kinds_for_latency(problem, spans):
        return None
    groups = similar_groups(problem.devices, affordable)
    if groups is None:
        return None
    outer = quickest(replace(problem, devices=stand_ins(groups, best_of)), form)
    inner = quickest(replace(problem, devices=stand_ins(groups, worst_of)), form)
    plans = [found.stages for found in (outer, inner) if found is not None]
    if outer is None or not plans:
        return None
    best = min(plans, key=lambda stages: latency_ms(problem, stages))
    value = latency_ms(problem, best)
    return Solution(best, value, min(value, outer.value)) if np.isfinite(value) else None
