"""When to send a batch again, and how often retries are allowed at all. Pure.

Deadline of an attempt: 4 x the 99th percentile of what answered attempts took, at least 2 s,
doubled for each attempt up to 30 s (or the undoubled deadline, where that is longer); 30 s while
none is known. Each attempt is timed from its own sending: timed from the batch's first, the wait
for a lost attempt would lengthen the next deadline, and deadlines would grow without end wherever
one message in a hundred is lost (Karn's algorithm, RFC 6298 section 3, keeps TCP from the same).
Retries spend tokens: 0.2 for each delivered batch, at most a window's worth, and one a second at
least, so that slowness does not breed load and a stuck pipeline still tries.
"""

import numpy as np
import numpy.typing as npt

ACTIVE_STEP_S = 0.05
"""How coarse the clock of deadlines is, at most: it is set forward a few times a second."""
TIMES_KEPT = 1000
PERCENTILE_EVERY = 20
"""Attempts between two computations of the percentile."""
MIN_DEADLINE_S = 2.0
MAX_DEADLINE_S = 30.0
P99_FACTOR = 4.0
TOKENS_PER_DELIVERY = 0.2
TOKENS_PER_S = 1.0
FIRST_REFUSAL_DELAY_S = 0.1
MAX_REFUSAL_DELAY_S = 5.0
MAX_REFUSALS = 3
"""Refusals that lie in the batch itself, after which it is declared dead."""


def attempt_deadline_s(p99_s: float | None, attempt: int) -> float:
    """How long attempt number ``attempt`` (from 0) may take."""
    if p99_s is None:
        return MAX_DEADLINE_S
    first = max(MIN_DEADLINE_S, P99_FACTOR * p99_s)
    return float(min(first * _doubled(attempt), max(MAX_DEADLINE_S, first)))


def refusal_delay_s(attempt: int) -> float:
    """How long to wait before sending a refused batch again: a refusal is quick, a loop is not."""
    return float(min(FIRST_REFUSAL_DELAY_S * _doubled(attempt), MAX_REFUSAL_DELAY_S))


def _doubled(attempt: int) -> float:
    return 2.0 ** min(attempt, 32)  # both results are capped long before


class AttemptTimes:
    """What recent attempts took that were answered, in seconds."""

    def __init__(self) -> None:
        self._times_s = np.zeros(TIMES_KEPT)  # the oldest is written over
        self._count = self._since = 0
        self.p99_s: float | None = None
        """Their 99th percentile, None before the first."""

    def add(self, time_s: float) -> None:
        """Count an attempt; one that is slower than nearly all before is heeded at once."""
        self._times_s[self._count % TIMES_KEPT] = time_s
        self._count += 1
        self._since += 1
        if self.p99_s is None or self._since >= PERCENTILE_EVERY or time_s > self.p99_s:
            self._since = 0
            self.p99_s = percentile_99(self._times_s[: self._count])


def percentile_99(values: npt.NDArray[np.float64]) -> float:
    """``numpy.percentile(values, 99)`` at a tenth of its cost: it is asked for while batches wait.

    At least one value.
    """
    place = 0.99 * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    ordered = np.partition(values, (below, above))
    return float(ordered[below] + (ordered[above] - ordered[below]) * (place - below))


class RetryBudget:
    """A token bucket."""

    def __init__(self, burst: int, now: float) -> None:
        self._burst, self._tokens, self._last = float(burst), float(burst), now

    def earn(self, now: float, delivered: int = 0) -> None:
        """Add what time and deliveries have earned."""
        earned = (now - self._last) * TOKENS_PER_S + delivered * TOKENS_PER_DELIVERY
        self._tokens, self._last = min(self._burst, self._tokens + earned), now

    def spend(self) -> bool:
        """Take one token, if there is one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
