"""Ends a text before the first of some texts, wherever the borders of tokens lie. Pure."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on, but for its end where a stop string may have begun."""

    def __init__(self, stops: Sequence[str]) -> None:
        """``stops``: none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.is_hit = False
        """Whether one of them has come: nothing is passed on any more."""

    def add(self, text: str) -> str:
        """What of ``text``, and of what was held back, is certainly no stop string."""
        if self.is_hit:
            return ""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_hit, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What is held back: the text has ended without the rest of a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that begin ``stop``, at most all of it but one."""
    for count in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:count]):
            return count
    return 0
