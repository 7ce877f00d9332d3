"""A server of the simulation: one thing at a time, in the order of arrival. Knows only the time."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """One server: the share of the time that it worked, and the most it had, in hand or waiting."""

    utilisation: float
    longest_queue: int


class Server:
    """A processor, one direction of a link, or a broker. It never leaves off what it began.

    Since things leave in the order of their arrival, the time of each one's end is known when it
    arrives: no events are needed but that end.
    """

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self._now_ms = now_ms
        self._ends: deque[float] = deque()
        self._free_at = self._work_ms = self._worked_before = 0.0
        self._longest_queue = 0

    def take(self, ms: float) -> float:
        """Give it something that takes so long; the time from now until that is done, in ms."""
        now = self._now_ms()
        while self._ends and self._ends[0] <= now:
            self._ends.popleft()
        self._free_at = max(self._free_at, now) + ms
        self._work_ms += ms
        self._ends.append(self._free_at)
        self._longest_queue = max(self._longest_queue, len(self._ends))
        return self._free_at - now

    def mark(self) -> None:
        """What was done before now does not count."""
        self._worked_before, self._longest_queue = self._worked_ms(), 0

    def load(self, elapsed_ms: float) -> Load:
        """Since :meth:`mark`, which was so long ago."""
        return Load((self._worked_ms() - self._worked_before) / elapsed_ms, self._longest_queue)

    def _worked_ms(self) -> float:
        return self._work_ms - max(0.0, self._free_at - self._now_ms())
