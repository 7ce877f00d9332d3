"""Publishes what Home Assistant shall show, and keeps it up to date; or takes it back.

It hears the cluster as an observer does, and writes nothing but discovery messages: the broker lets
its user do no more.
"""

import threading
import time
from typing import NamedTuple

from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from client.home_assistant.discovery import discovery_messages
from client.watch.state import ClusterState
from contract import topics
from contract.errors import BrokerError, BrokerUnreachableError

ANSWER_S = 10.0
"""How long the broker may take to acknowledge; it is waited for so that a refusal is told."""
SETTLE_S = 1.0
"""Retained messages follow their subscription at once: after so long without one, all have come."""


class Told(NamedTuple):
    """Topics whose message was published, and those that were cleared."""

    announced: tuple[str, ...] = ()
    cleared: tuple[str, ...] = ()


class Announcer:
    """A connection that tells Home Assistant of a cluster. Use as a context manager."""

    def __init__(
        self, connect: Connect, cluster: str, name: str, connect_timeout_s: float | None = 10.0
    ) -> None:
        """Connect and listen.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: no connection.
        """
        self._cluster = cluster
        self._lock = threading.Lock()
        self._state = ClusterState(cluster, time.monotonic)
        self._published: dict[str, bytes] = {}
        self._retained: set[str] = set()
        self._heard_at = time.monotonic()
        self._failure: BrokerError | None = None
        self._connection = connect(
            ConnectionSettings(name=name, session_expiry_s=0, connect_timeout_s=connect_timeout_s),
            Callbacks(on_delivery=self._hear, on_connected=self._begin_anew, on_failed=self._fail),
        )
        for topic_filter in (topics.status_filter(cluster), topics.discovery_filter(cluster)):
            self._connection.subscribe(topic_filter)
        self._begin_to_wait()

    def __enter__(self) -> "Announcer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close(forget_session=True)

    def _hear(self, delivery: Delivery) -> None:
        delivery.ack()
        with self._lock:
            self._heard_at = time.monotonic()
            if topics.is_discovery_topic(self._cluster, delivery.topic):
                known = self._retained.add if delivery.payload else self._retained.discard
                known(delivery.topic)
            else:
                self._state.take(delivery)

    def _begin_anew(self, _session_present: bool) -> None:
        """A broker that was started again may have forgotten what it retained."""
        with self._lock:
            self._published.clear()
        self._begin_to_wait()

    def _begin_to_wait(self) -> None:
        """Only now can what is retained come: to connect may have taken longer than to settle."""
        with self._lock:
            self._heard_at = time.monotonic()

    def _fail(self, error: BrokerError) -> None:
        self._failure = error

    def has_settled(self) -> bool:
        """Whether what the broker retains has come."""
        with self._lock:
            return time.monotonic() - self._heard_at >= SETTLE_S

    def announce(self) -> Told:
        """Publish what is new or has changed, clear what is of a device that is no more.

        Raises:
            NotAuthorisedError: our user may not write discovery messages.
            BrokerError: the broker has refused us something else.
        """
        with self._lock:
            wanted = discovery_messages(self._state.view())
            known = self._published
            gone = (set(known) | self._retained) - set(wanted)
            new = {topic: text for topic, text in wanted.items() if known.get(topic) != text}
        return self._publish(new, sorted(gone))

    def withdraw(self) -> Told:
        """Clear all that was announced of this cluster, by whomever.

        Raises:
            NotAuthorisedError: our user may not write discovery messages.
            BrokerError: the broker has refused us something else.
        """
        with self._lock:
            known = {*self._retained, *self._published}
        # Always at least one: without the right to read them, nothing retained is heard of.
        return self._publish({}, sorted(known | {topics.pipeline_discovery_topic(self._cluster)}))

    def _publish(self, new: dict[str, bytes], gone: list[str]) -> Told:
        if self._failure is not None:
            raise self._failure
        if not self._connection.is_connected:
            return Told()
        messages = {**new, **dict.fromkeys(gone, b"")}
        sent = [
            self._connection.publish(topic, text, retain=True) for topic, text in messages.items()
        ]
        try:
            for future in sent:
                future.result(timeout=ANSWER_S)
        except (BrokerUnreachableError, TimeoutError):
            return Told()  # the connection was lost meanwhile; what was sent is sent again
        with self._lock:
            self._published.update(new)
            for topic in gone:
                self._published.pop(topic, None)
                self._retained.discard(topic)
        return Told(tuple(new), tuple(gone))
