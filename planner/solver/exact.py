"""The best plan there is: the largest rate, or the least latency, over all cuts and devices.

For a target rate, :mod:`planner.solver.states` finds the stages that all reach it and burden the
broker least. The more is asked of the stages, the more the broker has to carry, so the best target
is found by bisection over the rates that sets of devices can reach. Pure and deterministic.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.cost_model import batches_per_s, broker_rate, client_rate, latency_ms
from planner.problem import Problem, Solution, StageChoice
from planner.solver.fractional import best_weights, capacities
from planner.solver.grouping import Kind, kinds_of, pairs_of_states
from planner.solver.spans import Floats, Spans, costs_of_all, make_spans
from planner.solver.states import Layers, StateSpace, Way, cheapest, hand_out

MAX_STEPS = 500_000_000
"""Pairs of a state and a further set of devices, times spans. A search looks at a small part of
them: 13 unlike devices and 24 segments have 478 million, 16 devices of four kinds and 120 segments
368 million."""
MAX_SINGLE_STEPS = 400_000_000
"""The same where a stage has one device: 16 unlike devices and 24 segments have 315 million."""
MAX_RATES = 1 << 23
"""Sets of devices times spans: a table of 64 MB."""
FIRST_TRIES = (1.0, 0.97, 0.92, 0.85, 0.7, 0.5)
"""Shares of the bound that are tried from above until one can be reached."""
EQUAL = 1e-12
"""Rates that differ by less, as a share, are the same: sums in another order."""


@dataclass(frozen=True)
class Form:
    """What a solution may look like: where cuts may be, how many stages, how many devices.

    ``num_stages`` None: any number from ``min_stages``. Without ``replicas`` each stage has exactly
    one device. ``boundaries`` are the cuts if they are fixed, 0 and the number of segments
    included.
    """

    replicas: bool
    max_devices: int
    num_stages: int | None = None
    min_stages: int = 1
    boundaries: tuple[int, ...] | None = None

    @property
    def layers(self) -> Layers:
        """How stages are counted for it."""
        if self.num_stages is not None:
            return Layers(self.num_stages, exactly=True)
        return Layers(self.min_stages if self.min_stages > 1 else 0, exactly=False)

    def with_single_devices(self) -> "Form":
        """The same with one device for each stage."""
        return replace(self, replicas=False)


@dataclass(frozen=True)
class Ground:
    """A problem made ready: its spans, its kinds and their state space."""

    spans: Spans
    kinds: tuple[Kind, ...]
    space: StateSpace
    layers: Layers

    def stages(self, way: Way) -> tuple[StageChoice, ...]:
        """The stages of a way, with names."""
        names = hand_out(way.hops, self.space, [kind.names for kind in self.kinds])
        return tuple(
            StageChoice(*self.spans.segments(span), devices)
            for (span, _), devices in zip(way.hops, names, strict=True)
        )


def is_exact_size(counts: Sequence[int], num_spans: int, form: Form) -> bool:
    """Whether the exact search is affordable for so many devices of each kind."""
    states = math.prod([count + 1 for count in counts])
    layers = math.sqrt(form.layers.count)
    if form.replicas:
        affordable = pairs_of_states(counts) * num_spans * layers <= MAX_STEPS
        return affordable and states * num_spans <= MAX_RATES
    return states * len(counts) * num_spans * layers <= MAX_SINGLE_STEPS


def kinds_for_rate(problem: Problem, spans: Spans) -> list[Kind]:
    """Devices that reach the same rate on every span are of one kind; useless ones are left out."""
    rates = {name: costs.rate for name, costs in costs_of_all(problem, spans).items()}
    return _useful([device.name for device in problem.devices], rates)


def kinds_for_latency(problem: Problem, spans: Spans) -> list[Kind]:
    """Devices that take the same time alone for every span are of one kind.

    Of each kind no more are kept than there can be stages.
    """
    alone = {
        name: np.where(np.isfinite(costs.busy_ms), costs.alone_ms, np.inf)
        for name, costs in costs_of_all(problem, spans).items()
    }
    kinds = kinds_of([device.name for device in problem.devices], alone)
    most = len(spans.nodes) - 1
    return [Kind(kind.names[:most], kind.costs) for kind in kinds if np.isfinite(kind.costs).any()]


def _useful(names: Sequence[str], rates: Mapping[str, Floats]) -> list[Kind]:
    return [kind for kind in kinds_of(names, rates) if kind.costs.any()]


def fastest(problem: Problem, form: Form) -> Solution | None:
    """The plan of the highest rate; None if nothing fits. Its bound is its value.

    Among plans of that rate it carries the fewest bytes through the broker, and among these uses
    the fewest devices. Only where messages themselves, not their bytes, are what keeps the broker
    busy, the plan that burdens it least may come before one of fewer bytes.
    """
    spans = make_spans(problem.num_segments, form.boundaries)
    kinds = kinds_for_rate(problem, spans)
    if not kinds:
        return None
    ground = _ground(spans, kinds, form)
    space = ground.space
    rates = space.rates(np.array([kind.costs for kind in kinds]))
    burden = _burden_ms(problem, spans)
    cap = min(client_rate(problem), broker_rate(problem, [0, problem.num_segments]))

    weights, bound = best_weights(kinds, spans, form.max_devices)
    left = (np.array(space.counts) - space.digits) @ capacities(kinds, spans, weights)
    still_to_do = 1.0 - np.concatenate([[0.0], np.cumsum(weights)])

    def reach(target: float, costs: Floats) -> Way | None:
        if target > bound:
            return None
        allowed = space.needed_only(rates >= target * (1 - EQUAL))
        hopeful = (target * still_to_do * (1 - 1e-9) - 1e-12)[:, None] <= left.T
        return cheapest(space, spans, allowed, costs, ground.layers, hopeful)

    def probe(target: float) -> tuple[float, bool]:
        """The rate of the best plan whose stages reach ``target``, and whether all of it does."""
        way = reach(target, burden[spans.end])
        if way is None:
            return 0.0, False
        slowest = min(float(rates[vector, span]) for span, vector in way.hops)
        carried = 1e3 / max(float(burden[0]) + way.cost, 1e-9)
        return min(slowest, carried, cap), carried >= target * (1 - EQUAL)

    # A pass is cheap near the bound, where little slack is left, and dear far below it.
    value = reached = 0.0
    refuted = np.inf
    for share in FIRST_TRIES:
        target = min(bound, cap) * share
        found, whole = probe(target)
        value = max(value, found)
        if whole:
            reached = found
            break
        refuted = target
    candidates = np.unique(rates[(rates > reached) & (rates < min(refuted, cap))])
    low, high = -1, len(candidates)
    while high - low > 1:
        middle = (low + high) // 2
        found, whole = probe(float(candidates[middle]))
        value = max(value, found)
        if whole:
            # It is the answer for all targets up to its own rate, not for the one asked alone.
            served = int(np.searchsorted(candidates, found * (1 + EQUAL), "right")) - 1
            low = max(middle, min(served, high - 1))
        else:
            high = middle
    return _tidy(problem, ground, reach, value) if value else None


def one_stage(problem: Problem, form: Form) -> Solution | None:
    """The fastest devices, as many as help: exact, since nothing else is to be chosen."""
    count = problem.num_segments
    cap = min(client_rate(problem), broker_rate(problem, [0, count]))
    costs = costs_of_all(problem, make_spans(count, (0, count)))
    rates = {name: float(found.rate[0]) for name, found in costs.items() if found.rate[0] > 0}
    most = form.max_devices if form.replicas else 1
    chosen: list[str] = []
    for name in sorted(rates, key=lambda name: -rates[name])[:most]:
        if sum(rates[other] for other in chosen) < cap:
            chosen.append(name)
    if not chosen:
        return None
    stages = (StageChoice(0, count, tuple(chosen)),)
    value = batches_per_s(problem, stages)
    return Solution(stages, value, value)


def _tidy(
    problem: Problem,
    ground: Ground,
    reach: Callable[[float, Floats], Way | None],
    value: float,
) -> Solution:
    """Of the plans that reach ``value``: the fewest bytes, then the fewest devices."""
    spans, sizes = ground.spans, ground.space.sizes[:, None]
    share = 1.0 / (min(ground.space.max_devices, sum(ground.space.counts)) + 1)
    sent = np.array([float(problem.edge_bytes[node]) for node in spans.nodes])
    burden = _burden_ms(problem, spans)
    fewest_bytes = sent[spans.end] / share + sizes
    least_burden = burden[spans.end] + sizes * (burden.sum() * share * EQUAL)
    for costs in (fewest_bytes, least_burden):
        way = reach(value, costs)
        if way is not None:
            stages = ground.stages(way)
            found = batches_per_s(problem, stages)
            if found >= value * (1 - 100 * EQUAL):
                return Solution(stages, found, max(found, value))
    raise RuntimeError(f"the plan of {value} batches a second was found and lost")


def quickest(problem: Problem, form: Form) -> Solution | None:
    """The plan of the least latency; None if nothing fits. Its bound is its value.

    Replicas never shorten the time of one batch, so each stage has one device. What a stage adds
    depends on its device and its edges alone, also for transfers: each wire belongs to one device.
    Ties go as for :func:`fastest`.
    """
    form = form.with_single_devices()
    spans = make_spans(problem.num_segments, form.boundaries)
    kinds = kinds_for_latency(problem, spans)
    if not kinds:
        return None
    ground = _ground(spans, kinds, form)
    times = np.array([kind.costs for kind in kinds])
    allowed = np.isfinite(times)
    costs = np.where(allowed, times, 0.0) + _burden_ms(problem, spans)[spans.end]
    # Bytes and devices decide where times are equal, and are too small to decide otherwise.
    sent = np.array([problem.edge_bytes[node] for node in spans.nodes], np.float64)
    tie = sent[spans.end] / max(float(sent.sum()), 1.0) + 1e-6
    longest = float(costs.max()) or 1.0
    way = cheapest(ground.space, spans, allowed, costs + tie * longest * EQUAL, ground.layers)
    if way is None:
        return None
    stages = ground.stages(way)
    value = latency_ms(problem, stages)
    return Solution(stages, value, value)


def _ground(spans: Spans, kinds: Sequence[Kind], form: Form) -> Ground:
    counts = tuple(kind.count for kind in kinds)
    space = StateSpace(counts, form.max_devices, form.replicas)
    return Ground(spans, tuple(kinds), space, form.layers)


def _burden_ms(problem: Problem, spans: Spans) -> Floats:
    """How long a message at each node keeps the broker."""
    return np.array([problem.broker.edge_ms(problem.edge_bytes[node]) for node in spans.nodes])
