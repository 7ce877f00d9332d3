"""A bound that costs nothing: what the devices could do if each could serve many stages in parts.

Give every segment a weight, all weights together 1. In any plan, each stage reaches the rate v, so
v = sum over stages of weight x v <= sum over devices of rate x weight of its stage <= sum over
devices of the largest rate x weight of any span. True for any weights: the dual of the linear
relaxation. The weights are improved step by step; each set of them is a proof. Pure.
"""

from collections.abc import Sequence

import numpy as np

from planner.solver.grouping import Kind
from planner.solver.spans import Floats, Spans

STEPS = 300
"""At most; as many as there are spans, since small problems need no tight bound."""


def capacities(kinds: Sequence[Kind], spans: Spans, weights: Floats) -> Floats:
    """By kind and node: the most that one device can give to the segments from there on.

    In weighted batches a second. A plan that has reached a node at the rate v needs v times the
    weight of the rest from the devices that are left.
    """
    before = np.concatenate([[0.0], np.cumsum(weights)])
    span_weights = before[spans.end] - before[spans.first]
    table = np.zeros((len(kinds), len(spans.nodes)))
    for index, kind in enumerate(kinds):
        np.maximum.at(table[index], spans.first, kind.costs * span_weights)
    return np.maximum.accumulate(table[:, ::-1], axis=1)[:, ::-1]


def best_weights(kinds: Sequence[Kind], spans: Spans, max_devices: int) -> tuple[Floats, float]:
    """Weights of what lies between neighbouring nodes, and the bound in batches a second."""
    pieces = len(spans.nodes) - 1
    rates = np.array([kind.costs for kind in kinds])
    counts = np.array([kind.count for kind in kinds], np.float64)
    weights = np.full(pieces, 1.0 / pieces)
    least, best = np.inf, weights
    for step in range(min(STEPS, spans.count)):
        before = np.concatenate([[0.0], np.cumsum(weights)])
        values = rates * (before[spans.end] - before[spans.first])
        chosen = values.argmax(axis=1)
        reached = values[np.arange(len(kinds)), chosen]
        used = _strongest(reached, counts, max_devices)
        bound = float(reached @ used)
        if bound < least:
            least, best = bound, weights
        slope = np.zeros(pieces + 1)
        gain = rates[np.arange(len(kinds)), chosen] * used
        np.add.at(slope, spans.first[chosen], gain)
        np.add.at(slope, spans.end[chosen], -gain)
        load = np.cumsum(slope)[:-1] / max(bound, 1e-300)
        weights = weights * np.exp(-np.clip(load - 1.0, -3, 3) / (step + 3.0) ** 0.7)
        weights = weights / weights.sum()
    return best, least * (1 + 1e-9)


def _strongest(reached: Floats, counts: Floats, max_devices: int) -> Floats:
    """How many devices of each kind count, if only so many may be used: the strongest."""
    used = np.zeros_like(counts)
    room = float(max_devices)
    for index in np.argsort(-reached, kind="stable"):
        used[index] = min(counts[index], room)
        room -= used[index]
    return used
