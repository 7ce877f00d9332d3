"""Finds a rival's best settings by trying: nobody shall say that it was badly set up. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Setting = dict[str, Any]
CANDIDATES = 3
TRANSFER_MS_PER_MB = 1.0
"""What weighs against a cut with a large activation when the candidates are chosen."""


@dataclass(frozen=True, slots=True)
class Link:
    """One link of a chain of modules: its time for a batch, and what it gives on."""

    ms: float
    output_bytes: int


def balanced_cuts(links: Sequence[Link], count: int = CANDIDATES) -> list[int]:
    """The cuts (number of links in the first half) whose slower half is fastest, best first.

    Raises:
        ValueError: a chain of one link cannot be cut.
    """
    if len(links) < 2:
        raise ValueError(f"a chain of {len(links)} links has no place to cut")
    total = sum(link.ms for link in links)
    before, found = 0.0, []
    for cut, link in enumerate(links[:-1], start=1):
        before += link.ms
        slower = max(before, total - before) + link.output_bytes / 1e6 * TRANSFER_MS_PER_MB
        found.append((slower, cut))
    return [cut for _slower, cut in sorted(found)[:count]]


def tune(
    start: Setting, choices: Mapping[str, Sequence[Any]], rate: Callable[[Setting], float]
) -> tuple[Setting, float]:
    """Try every value of one setting after the other, keep the best of each; it and its rate."""
    best, best_rate = start, rate(start)
    for name, values in choices.items():
        for value in values:
            if value == best[name]:
                continue
            tried = {**best, name: value}
            reached = rate(tried)
            if reached > best_rate:
                best, best_rate = tried, reached
    return best, best_rate
