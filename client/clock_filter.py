"""How far another clock is ahead of ours, from questions for the time and their answers. Pure.

RFC 5905, section 8: a question leaves at t1 and its answer is there at t4 by our clock, and
the other one reads it at t2 and writes at t3 by its own. The offset is ((t2 - t1) + (t3 - t4)) / 2,
wrong by half of the round trip (t4 - t1) - (t3 - t2) at most, however unlike the two ways were.
Section 10: of the last eight the one with the shortest round trip counts, and ages.
"""

from collections import deque
from typing import NamedTuple

KEPT = 8
DRIFT_PPM = 50
"""Two crystals without a time server come apart by about so many microseconds a second."""
FORGET_AFTER_US = 120_000_000


class Sample(NamedTuple):
    """One exchange, in microseconds; ``at_us`` by our clock."""

    at_us: int
    offset_us: int
    round_trip_us: int

    def bound_us(self, now_us: int) -> int:
        """Twice what the offset may be wrong by at another moment."""
        return self.round_trip_us + 2 * abs(now_us - self.at_us) * DRIFT_PPM // 1_000_000


def sample(asked_us: int, read_us: int, written_us: int, heard_us: int) -> Sample | None:
    """What one exchange tells, None where its times cannot be: t1, t2, t3, t4 of the RFC."""
    round_trip_us = (heard_us - asked_us) - (written_us - read_us)
    if written_us < read_us or round_trip_us < 0:
        return None
    return Sample(heard_us, ((read_us - asked_us) + (written_us - heard_us)) // 2, round_trip_us)


class ClockFilter:
    """The last exchanges with one device."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)

    def add(self, new: Sample) -> None:
        """Take one more exchange in.

        Two that cannot both be right mean that one of the clocks was set: only the new one counts.
        """
        for old in self._samples:
            apart_us = 2 * abs(new.offset_us - old.offset_us)
            # 2: each offset was rounded
            if apart_us > new.round_trip_us + old.bound_us(new.at_us) + 2:
                self._samples.clear()
                break
        self._samples.append(new)

    def best(self, now_us: int) -> tuple[int, int] | None:
        """The offset, and the round trip with what the clocks may have come apart since.

        The offset is wrong by half of the second at most. None where nothing is known that is not
        older than :data:`FORGET_AFTER_US`.
        """
        fresh = [s for s in self._samples if now_us - s.at_us <= FORGET_AFTER_US]
        if not fresh:
            return None
        best = min(fresh, key=lambda s: s.bound_us(now_us))
        return best.offset_us, best.bound_us(now_us)
