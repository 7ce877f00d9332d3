"""What a connection is subscribed to, and which requests the broker has not answered yet.

A broker may answer before whoever asked has learnt the number of the request: such an answer waits
for its filter. Knows nothing of sockets; its owner's lock guards it.
"""

from collections.abc import Sequence

from paho.mqtt.reasoncodes import ReasonCode

Answers = Sequence[ReasonCode]
"""One for each filter of a request; ours have one."""


class Subscriptions:
    """Of one connection, for as long as the process wants it."""

    def __init__(self) -> None:
        self._filters: list[tuple[str, int]] = []
        self._asked: dict[int, str] = {}
        self._early: dict[int, Answers] = {}

    def add(self, topic_filter: str, qos: int) -> None:
        """From now on it belongs to every connection that is made."""
        self._filters.append((topic_filter, qos))

    def begin(self) -> list[tuple[str, int]]:
        """There is a new connection: all filters with their QoS, to be asked for on it."""
        self._asked.clear()
        self._early.clear()
        return list(self._filters)

    def ask(self, number: int, topic_filter: str) -> Answers | None:
        """The filter was asked for under this number; the answer, if it has come already."""
        early = self._early.pop(number, None)
        if early is None:
            self._asked[number] = topic_filter
        return early

    def answer(self, number: int, answers: Answers) -> str | None:
        """The filter that was asked for under this number; None if that is not known yet."""
        topic_filter = self._asked.pop(number, None)
        if topic_filter is None:
            self._early[number] = answers
        return topic_filter
