"""Waits longer after every failure of the same thing. Pure."""

MOST_DOUBLINGS = 16


class Backoff:
    """When each of several things may be tried again. Times in seconds of any monotonic clock."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._failures: dict[str, int] = {}
        self._not_before_s: dict[str, float] = {}

    def is_due(self, what: str, now_s: float) -> bool:
        """Whether it may be tried now."""
        return now_s >= self._not_before_s.get(what, now_s)

    def failed(self, what: str, now_s: float) -> float:
        """It was tried and failed; for how many seconds it is left alone now."""
        failures = self._failures.get(what, 0)
        wait_s = min(self._first_s * 2.0 ** min(failures, MOST_DOUBLINGS), self._longest_s)
        self._failures[what] = failures + 1
        self._not_before_s[what] = now_s + wait_s
        return wait_s

    def succeeded(self, what: str) -> None:
        """It worked: what failed before is forgotten."""
        self._failures.pop(what, None)
        self._not_before_s.pop(what, None)
