"""The cheapest way through all segments with the devices at hand: dynamic programming, as arrays.

A state is how many devices of each kind are used. ``best[node][layer][state]`` is the least cost of
stages that cover the segments before a node with exactly these devices. Pure.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from planner.solver.spans import Bools, Floats, Ints, Spans

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Layers:
    """How stages are counted: exactly ``stages`` of them, or at least so many."""

    stages: int
    exactly: bool

    @property
    def count(self) -> int:
        """How many layers are told apart, none used included."""
        return self.stages + 1

    def advance(self, row: Floats) -> Floats:
        """One stage more, for costs by layer and state."""
        after = np.full(row.shape, np.inf)
        after[1:] = row[:-1]
        if not self.exactly:
            after[-1] = np.minimum(after[-1], row[-1])
        return after

    def before(self, layer: int) -> list[int]:
        """The layers from which one stage more leads to ``layer``."""
        same = [layer] if not self.exactly and layer == self.stages else []
        return ([layer - 1] if layer else []) + same


@dataclass
class StateSpace:
    """The states of ``counts`` devices of each kind, and the sets of devices a stage may take.

    ``vectors`` has one row for each such set: how many devices of each kind. With ``replicas``
    these are all of at least one device, without, all of exactly one. ``digits`` has one row for
    each state; taking a set of devices moves a state by the set's entry in ``offsets``.
    """

    counts: tuple[int, ...]
    max_devices: int
    replicas: bool
    vectors: Ints = field(init=False)
    sizes: Ints = field(init=False)
    num_states: int = field(init=False)
    _totals: Ints = field(init=False)
    digits: Ints = field(init=False)
    offsets: Ints = field(init=False)

    def __post_init__(self) -> None:
        shape = [count + 1 for count in self.counts]
        self.num_states = math.prod(shape)
        self.digits = np.indices(shape).reshape(len(shape), -1).T.astype(np.int64)
        self._totals = self.digits.sum(axis=1)
        sizes = self._totals
        if self.replicas:
            self.vectors = self.digits[(sizes > 0) & (sizes <= self.max_devices)]
        else:
            self.vectors = np.eye(len(shape), dtype=np.int64)
        self.sizes = self.vectors.sum(axis=1)
        weights = [math.prod(shape[index + 1 :]) for index in range(len(shape))]
        self.offsets = self.vectors @ np.array(weights, np.int64)

    def rates(self, kind_rates: Floats) -> Floats:
        """Rate of every set of devices for every span, from that of each kind for every span."""
        return np.asarray(self.vectors @ kind_rates, np.float64)

    def needed_only(self, reached: Bools) -> Bools:
        """Of the sets that reach a rate for a span, those of which no device can be left out."""
        if not self.replicas:
            return reached
        index = np.full(self.num_states, -1)
        index[self.offsets] = np.arange(len(self.vectors))
        kept = reached.copy()
        for kind, count in enumerate(self.counts):
            weight = math.prod(other + 1 for other in self.counts[kind + 1 :])
            if not count:
                continue
            with_one = np.flatnonzero((self.vectors[:, kind] > 0) & (self.sizes > 1))
            without = index[self.offsets[with_one] - weight]
            kept[with_one] &= ~reached[without]
        return kept

    def drop_dominated(self, rows: Floats) -> Floats:
        """Forget states that use more devices than another and cost no less; by layer and state."""
        least, dropped = rows.copy(), np.zeros(rows.shape, np.bool_)
        for by_count in self._by_count(least):
            for used in range(1, by_count.shape[1]):
                np.minimum(by_count[:, used], by_count[:, used - 1], out=by_count[:, used])
        views = zip(
            self._by_count(least), self._by_count(rows), self._by_count(dropped), strict=True
        )
        for lower, own, out in views:
            out[:, 1:] |= lower[:, :-1] <= own[:, 1:]
        return np.where(dropped, np.inf, rows)

    def _by_count(self, rows: npt.NDArray[T]) -> Iterator[npt.NDArray[T]]:
        """For each kind a view of contiguous ``rows``, its number used in the middle."""
        after = rows.shape[-1]
        for count in self.counts:
            after //= count + 1
            yield rows.reshape(-1, count + 1, after)

    def room(self, states: Ints, vectors: Ints) -> Bools:
        """Whether these sets of devices can still be taken from these states; both broadcast.

        Numbers of each kind, and of all devices, lie side by side in one integer, each with a bit
        above it that is set when there are too many.
        """
        packed, packed_vectors, too_many = self._packed
        return np.asarray((packed[states] + packed_vectors[vectors]) & too_many == 0)

    @cached_property
    def _packed(self) -> tuple[Ints, Ints, int]:
        """States, sets of devices, and the bits that say too many."""
        states, vectors = np.zeros(self.num_states, np.int64), np.zeros(len(self.vectors), np.int64)
        too_many = shift = 0
        limits = [*self.counts, min(self.max_devices, sum(self.counts))]
        columns = zip(
            [*self.digits.T, self._totals], [*self.vectors.T, self.sizes], limits, strict=True
        )
        for of_states, of_vectors, limit in columns:
            width = max(limit, int(of_states.max()), int(of_vectors.max())).bit_length()
            states += (of_states + ((1 << width) - 1 - limit)) << shift
            vectors += of_vectors << shift
            too_many |= 1 << (shift + width) | 1 << (shift + width + 1)
            shift += width + 2
        if shift > 62:
            raise ValueError(f"{len(self.counts)} kinds of devices do not fit one integer")
        return states, vectors, too_many


@dataclass(frozen=True)
class Way:
    """Spans that cover all segments in order, the set of devices of each, and what it costs."""

    cost: float
    hops: tuple[tuple[int, int], ...]


def cheapest(
    space: StateSpace,
    spans: Spans,
    allowed: Bools,
    cost: Floats,
    layers: Layers,
    hopeful: Bools | None = None,
) -> Way | None:
    """The cheapest way, or None if there is none.

    Args:
        space: the devices.
        spans: where stages may begin and end.
        allowed: by set of devices and span, whether the one may serve the other.
        cost: likewise, finite; anything that broadcasts to it.
        layers: how many stages.
        hopeful: by node and state, whether the devices that are left can do the rest. States that
            are not are dropped.
    """
    cost = np.broadcast_to(cost, allowed.shape)
    num_states = space.num_states
    best = np.full((len(spans.nodes), layers.count, num_states), np.inf)
    best[0, 0, 0] = 0.0
    alive: list[list[Ints]] = [[np.flatnonzero(np.isfinite(row)) for row in best[0]]]
    for node in range(1, len(spans.nodes)):
        rows = np.full((layers.count, num_states), np.inf)
        for span in range(spans.begin_of[node], spans.begin_of[node + 1]):
            vectors = np.flatnonzero(allowed[:, span])
            first = int(spans.first[span])
            if not len(vectors):
                continue
            for layer, states in enumerate(alive[first]):
                if not len(states):
                    continue
                which, taken = np.nonzero(space.room(states[:, None], vectors))
                before, vector = states[which], vectors[taken]
                costs = best[first, layer, before] + cost[vector, span]
                np.minimum.at(rows[layer], before + space.offsets[vector], costs)
        if hopeful is not None:
            rows[:, ~hopeful[node]] = np.inf
        best[node] = space.drop_dominated(layers.advance(rows))
        alive.append([np.flatnonzero(np.isfinite(row)) for row in best[node]])
    state = int(np.argmin(best[-1, layers.stages]))
    if not np.isfinite(best[-1, layers.stages, state]):
        return None
    hops = _walk_back(space, spans, allowed, cost, layers, best, state)
    return Way(float(best[-1, layers.stages, state]), tuple(hops))


def _walk_back(
    space: StateSpace,
    spans: Spans,
    allowed: Bools,
    cost: Floats,
    layers: Layers,
    best: Floats,
    state: int,
) -> list[tuple[int, int]]:
    """The hops that gave the last node's cost in ``state``: the first that add up to it exactly."""
    hops: list[tuple[int, int]] = []
    node, layer = len(spans.nodes) - 1, layers.stages
    while node:
        begin, end = spans.begin_of[node], spans.begin_of[node + 1]
        vectors, columns = np.nonzero(allowed[:, begin:end])
        chosen = begin + columns
        before = state - space.offsets[vectors]
        possible = (before >= 0) & space.room(np.maximum(before, 0), vectors)
        vectors, chosen, before = vectors[possible], chosen[possible], before[possible]
        for earlier in layers.before(layer):
            costs = best[spans.first[chosen], earlier, before] + cost[vectors, chosen]
            matching = np.flatnonzero(costs == best[node, layer, state])
            if len(matching):
                hop = int(matching[0])
                hops.append((int(chosen[hop]), int(vectors[hop])))
                node, layer, state = int(spans.first[chosen[hop]]), earlier, int(before[hop])
                break
        else:
            raise RuntimeError("a cost that no hop gives: the table is broken")
    return hops[::-1]


def hand_out(
    hops: Sequence[tuple[int, int]], space: StateSpace, names: Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """Names for the devices of each hop, taken from each kind in order."""
    stores = [iter(of_kind) for of_kind in names]
    return [
        tuple(
            itertools.chain.from_iterable(
                itertools.islice(stores[kind], int(taken))
                for kind, taken in enumerate(space.vectors[vector])
            )
        )
        for _, vector in hops
    ]
