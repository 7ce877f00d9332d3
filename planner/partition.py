"""Chooses stages and their devices for a problem: the entrance to the solvers. Pure.

Which solver answers is decided here, by the method and the size; what they have in common is that a
:class:`planner.problem.Solution` carries its value and a proven bound.
"""

import itertools
from contextlib import suppress
from dataclasses import replace

from contract.errors import PartitionError
from planner.cost_model import batches_per_s, in_flight_rate, latency_ms
from planner.problem import ClientCosts, Problem, Solution, StageChoice
from planner.rules import Objective, Rules
from planner.solver.baselines import even, greedy
from planner.solver.bounded import (
    bounded_fastest,
    bounded_quickest,
    rate_bound,
    without_the_needless,
)
from planner.solver.exact import (
    EQUAL,
    Form,
    fastest,
    is_exact_size,
    kinds_for_latency,
    kinds_for_rate,
    one_stage,
    quickest,
)
from planner.solver.infeasible import explain
from planner.solver.spans import make_spans


def partition(problem: Problem, rules: Rules) -> Solution:
    """The best stages and devices by these rules, or good ones with a bound.

    ``exact`` is optimal up to the sizes of :mod:`planner.solver.exact`, beyond which a bound says
    how far the best could be. ``greedy`` and ``even`` are there to compare with. Devices may always
    be left out, except by ``even``, which takes them in the given order.

    Returns:
        The solution; for the objective ``latency`` its value and bound are ms, the bound a lower
        one.

    Raises:
        PartitionError: the rules contradict themselves, or nothing fits; it says what would.
    """
    if problem.batches_in_flight is None:
        return _partition(problem, rules)
    unbound = _partition(replace(problem, batches_in_flight=None), rules)
    if rules.objective == "latency" or in_flight_rate(problem, unbound.stages) >= unbound.value:
        return unbound
    return _with_few_in_flight(problem, rules, unbound)


def _with_few_in_flight(problem: Problem, rules: Rules, unbound: Solution) -> Solution:
    """A good plan, not always the best, where it waits for its batches; its bound holds.

    Of more devices than batches some always wait, and with one batch the quickest round is the best
    plan; between the two ends lies the plan that reaches the highest rate of all.

    Args:
        problem: with a bound of batches in flight.
        rules: for the objective throughput.
        unbound: the solution without that bound, which it does not reach.
    """
    most = problem.batches_in_flight
    assert most is not None
    free = replace(problem, batches_in_flight=None)
    found, bound = [unbound.stages], unbound.bound
    if rules.method == "exact":
        fewer = most if rules.max_devices is None else min(most, rules.max_devices)
        with suppress(PartitionError):  # so few cannot hold the model, or so many stages
            found.append(_partition(free, replace(rules, max_devices=fewer)).stages)
        no_client = replace(free, client=ClientCosts())
        quickest_round = _partition(no_client, replace(rules, objective="latency"))
        found.append(quickest_round.stages)
        bound = min(bound, most * 1e3 / max(quickest_round.bound, 1e-9))
    rates = [batches_per_s(problem, stages) for stages in found]
    good = [
        stages
        for stages, rate in zip(found, rates, strict=True)
        if rate >= max(rates) * (1 - EQUAL)
    ]
    fewest = min(good, key=lambda stages: sum(len(stage.devices) for stage in stages))
    if rules.method == "exact":
        fewest = without_the_needless(problem, fewest)
    value = batches_per_s(problem, fewest)
    return Solution(fewest, value, max(value, bound))


def _partition(problem: Problem, rules: Rules) -> Solution:
    """As :func:`partition`, for any number of batches in flight."""
    form = form_of(problem, rules)
    if rules.method == "exact":
        found = solve(problem, form, rules.objective, rules.seconds)
    else:
        stages = (greedy if rules.method == "greedy" else even)(problem, form)
        found = None
        if stages is not None:
            found = _with_bound(problem, form, rules.objective, stages)
    if found is None:
        raise PartitionError(explain(problem, form, rules.method))
    return found


def solve(
    problem: Problem, form: Form, objective: Objective = "throughput", seconds: float = 10.0
) -> Solution | None:
    """The best solution of a form, exactly where that is affordable; None if nothing fits."""
    spans = make_spans(problem.num_segments, form.boundaries)
    if objective == "throughput":
        if form.num_stages == 1:
            return one_stage(problem, form)
        counts = [kind.count for kind in kinds_for_rate(problem, spans)]
        if is_exact_size(counts, spans.count, form):
            return fastest(problem, form)
        return bounded_fastest(problem, form, seconds)
    counts = [kind.count for kind in kinds_for_latency(problem, spans)]
    if is_exact_size(counts, spans.count, form.with_single_devices()):
        return quickest(problem, form)
    return bounded_quickest(problem, form)


def _with_bound(
    problem: Problem, form: Form, objective: Objective, stages: tuple[StageChoice, ...]
) -> Solution:
    """A baseline's stages beside the best of the same form, or beside a quick bound of it."""
    spans = make_spans(problem.num_segments, form.boundaries)
    if objective == "latency":
        value = latency_ms(problem, stages)
        best = solve(problem, form, objective)
        return Solution(stages, value, min(value, best.bound if best else 0.0))
    value = batches_per_s(problem, stages)
    counts = [kind.count for kind in kinds_for_rate(problem, spans)]
    if is_exact_size(counts, spans.count, form):
        exact = fastest(problem, form)
        return Solution(stages, value, max(value, exact.bound if exact else 0.0))
    return Solution(stages, value, max(value, rate_bound(problem, form)))


def form_of(problem: Problem, rules: Rules) -> Form:
    """The rules as a form of solutions.

    Raises:
        PartitionError: they contradict each other, or cannot hold for any devices.
    """
    count, num_stages = problem.num_segments, rules.num_stages
    boundaries = rules.boundaries
    if boundaries is not None:
        if (
            boundaries[:1] != (0,)
            or boundaries[-1] != count
            or any(first >= end for first, end in itertools.pairwise(boundaries))
        ):
            raise PartitionError(
                f"boundaries {boundaries}: expected ascending segment indices from 0 to {count}"
            )
        if num_stages not in (None, len(boundaries) - 1):
            raise PartitionError(
                f"{num_stages} stages asked for, and boundaries of {len(boundaries) - 1}; "
                "give one of the two"
            )
        num_stages = len(boundaries) - 1
    least = num_stages if num_stages is not None else max(1, rules.min_stages)
    if least < 1:
        raise PartitionError(f"{least} stages asked for, expected at least 1")
    if rules.strategy in ("single", "replicas"):
        if least > 1:
            raise PartitionError(
                f"the strategy {rules.strategy} has one stage, {least} were asked for; "
                "use the strategy pipeline or mixed"
            )
        num_stages = 1
    if least > count:
        raise PartitionError(
            f"{least} stages need {least - 1} cut points, the model has {count - 1}; "
            f"ask for at most {count} stages"
        )
    devices = len(problem.devices)
    allowed = devices if rules.max_devices is None else min(devices, rules.max_devices)
    if least > allowed:
        raise PartitionError(
            f"{least} stages need as many devices, there are {allowed}; "
            f"ask for at most {allowed} stages or add devices"
        )
    return Form(
        replicas=rules.strategy in ("replicas", "mixed"),
        max_devices=1 if rules.strategy == "single" else allowed,
        num_stages=num_stages,
        min_stages=1 if num_stages is not None else least,
        boundaries=boundaries,
    )
