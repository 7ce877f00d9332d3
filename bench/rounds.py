"""Sides in turns, and what is said of the rounds. Pure.

A ratio is taken within one round, between sides that ran right after each other: the machine's
speed drifts, and both sides drift with it. The order is turned round every round (A B, B A, …), so
that a steady drift falls on all sides alike.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
LEAST_BATCHES = 24
Spread = dict[str, float]
"""``median``, ``min`` and ``max`` of some rounds."""


def take_turns(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every side once in each round; what each returned, by round."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(sides[name]())
    return found


def long_enough(seconds: float, batches_per_s: float) -> float:
    """How long a turn of a pipeline must be, if ``seconds`` are too few.

    Filling and draining cost a batch's time for each stage but one: of two dozen batches that is
    one in twenty-five for two stages, and of five it would be one in six.
    """
    return max(seconds, LEAST_BATCHES / batches_per_s)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round.

    Raises:
        ValueError: not as many rounds of the one as of the other.
    """
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> Spread:
    """Median and range of the rounds, rounded.

    Raises:
        ValueError: no rounds.
    """
    if not values:
        raise ValueError("no rounds to sum up")
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratio_spread(ours: Sequence[float], theirs: Sequence[float], digits: int = 3) -> Spread:
    """The spread of :func:`ratios`."""
    return spread(ratios(ours, theirs), digits)
