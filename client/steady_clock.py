"""Unix time that never steps: the wall clock read once, and monotonic time since."""

import time


class SteadyClock:
    """The client's clock in traces. A wall clock that is set meanwhile makes no negative time.

    ``wall_us`` and ``monotonic_s`` are one moment by both clocks; the present one by default.
    """

    def __init__(self, wall_us: int | None = None, monotonic_s: float | None = None) -> None:
        self._wall_us = time.time_ns() // 1000 if wall_us is None else wall_us
        self._monotonic_s = time.monotonic() if monotonic_s is None else monotonic_s

    def at_us(self, monotonic_s: float) -> int:
        """A moment of :func:`time.monotonic` as Unix time in microseconds."""
        return self._wall_us + round((monotonic_s - self._monotonic_s) * 1e6)

    def now_us(self) -> int:
        """The present moment."""
        return self.at_us(time.monotonic())
