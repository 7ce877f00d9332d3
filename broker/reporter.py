"""Reports events to the event topic, at most one of a kind a second.

A flood of bad messages must not become a flood of events: what comes within the second is counted,
and the count travels with the next one.
"""

import logging
import threading
import time

from broker.transport import Connection
from contract import topics
from contract.errors import BrokerError
from contract.printable import printable
from contract.status import Event, EventKind

MIN_INTERVAL_S = 1.0
MAX_DETAIL = 1000

log = logging.getLogger(__name__)
_LEVELS = {EventKind.SHARD_READY: logging.INFO, EventKind.SHARD_FAILED: logging.ERROR}


class EventReporter:
    """Thread-safe; :meth:`flush` is called about once a second."""

    def __init__(self, cluster: str, sender: str, connection: Connection) -> None:
        self._topic = topics.event_topic(cluster, sender)
        self._sender, self._connection = sender, connection
        self._lock = threading.Lock()
        self._last_sent: dict[EventKind, float] = {}
        self._held: dict[EventKind, tuple[str, int]] = {}

    def report(self, kind: EventKind, detail: str) -> None:
        """Publish an event now, or hold it back and count it."""
        with self._lock:
            count = self._held.pop(kind, ("", 0))[1] + 1
            if time.monotonic() - self._last_sent.get(kind, -MIN_INTERVAL_S) < MIN_INTERVAL_S:
                self._held[kind] = (detail, count)
                return
            self._last_sent[kind] = time.monotonic()
        self._send(kind, detail, count)

    def flush(self) -> None:
        """Send what is held back and old enough."""
        now = time.monotonic()
        with self._lock:
            due = {
                kind: self._held.pop(kind)
                for kind in list(self._held)
                if now - self._last_sent.get(kind, 0.0) >= MIN_INTERVAL_S
            }
            self._last_sent.update(dict.fromkeys(due, now))
        for kind, (detail, count) in due.items():
            self._send(kind, detail, count)

    def _send(self, kind: EventKind, detail: str, count: int) -> None:
        # Logged here, behind the limit: a flood of messages must not fill an SD card with lines.
        log.log(_LEVELS.get(kind, logging.WARNING), "%s: %s", kind, detail)
        event = Event(
            kind=kind,
            sender=self._sender,
            time_unix_s=round(time.time(), 3),
            detail=printable(detail[:MAX_DETAIL])[:MAX_DETAIL],
            count=count,
        )
        try:
            self._connection.publish(self._topic, event.model_dump_json().encode())
        except BrokerError as error:
            log.warning("event not published: %s", error)
