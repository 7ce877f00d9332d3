"""What is kept of one sender, and of the broker's counters: bounded, and no older than it says."""

from collections import deque
from dataclasses import replace
from typing import Generic, TypeVar

from client.watch.view import BrokerView
from contract import topics

T = TypeVar("T")

MAX_DIGITS = 20
RECENT_S = 30.0
"""Mosquitto tells its counters every 10 s, and only those that have changed."""

_FIELDS = {
    topics.BROKER_UPTIME: "uptime_s",
    topics.BROKER_BYTES_RECEIVED: "bytes_received",
    topics.BROKER_BYTES_SENT: "bytes_sent",
    topics.BROKER_DROPPED: "messages_dropped",
    topics.BROKER_CLIENTS: "clients_connected",
}
BROKER_TOPICS = tuple(_FIELDS)
"""What a watcher subscribes to of Mosquitto's own topics."""


class Kept(Generic[T]):
    """The last messages of one sender: so many, and so many bytes, at most."""

    def __init__(self, count: int, total_bytes: int) -> None:
        self._count, self._total_bytes = count, total_bytes
        self._messages: deque[tuple[T, int]] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._messages)

    def add(self, message: T, size_bytes: int) -> None:
        """Keep ``message``, which took ``size_bytes`` on the wire, and let the oldest go for it."""
        self._messages.append((message, size_bytes))
        self._bytes += size_bytes
        while len(self._messages) > self._count or self._bytes > self._total_bytes:
            self._bytes -= self._messages.popleft()[1]

    def all(self) -> tuple[T, ...]:
        """What is kept, oldest first."""
        return tuple(message for message, _size in self._messages)


class BrokerCounters:
    """Mosquitto's own counters, and how fast they grow."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._heard_at: dict[str, float] = {}  # live ones only: what is retained is of any age
        self._per_s: dict[str, float] = {}
        self._grown: dict[str, int] = {}

    def take(self, topic: str, payload: bytes, *, retained: bool, now: float) -> bool:
        """Take a message of :data:`BROKER_TOPICS` in; whether it is a number."""
        digits = payload[: 2 * MAX_DIGITS].split(b" ", 1)[0]  # "123 seconds"
        if len(digits) > MAX_DIGITS or not digits.isdigit():
            return False
        name, total = _FIELDS[topic], int(digits)
        before, heard_at = self._totals.get(name), self._heard_at.get(name)
        self._totals[name] = total
        self._per_s.pop(name, None)
        self._grown.pop(name, None)
        if retained:
            return True
        self._heard_at[name] = now
        if before is not None and total >= before:
            self._grown[name] = total - before
            if heard_at is not None and now > heard_at:
                self._per_s[name] = (total - before) / (now - heard_at)
        return True

    def view(self, now: float) -> BrokerView:
        """All of it, as it is now."""
        recent = {name for name, at in self._heard_at.items() if now - at <= RECENT_S}
        per_s = {name: value for name, value in self._per_s.items() if name in recent}
        dropped = self._grown.get("messages_dropped", 0) if "messages_dropped" in recent else 0
        return replace(
            BrokerView(**self._totals),
            bytes_received_per_s=per_s.get("bytes_received"),
            bytes_sent_per_s=per_s.get("bytes_sent"),
            messages_dropped_recently=dropped,
        )
