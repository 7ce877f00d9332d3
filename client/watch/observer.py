"""Listens to a cluster as an observer may: it reads, and writes nothing."""

import threading
import time
from collections.abc import Callable

from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from client.watch.kept import BROKER_TOPICS
from client.watch.state import ClusterState
from client.watch.view import ClusterView
from contract import topics
from contract.errors import BrokerError

Heard = Callable[[Delivery], None]


class Observer:
    """A connection that keeps a :class:`ClusterView` up to date. Use as a context manager."""

    def __init__(
        self,
        connect: Connect,
        cluster: str,
        name: str,
        *,
        connect_timeout_s: float | None = 10.0,
        on_heard: Heard | None = None,
    ) -> None:
        """Connect and subscribe.

        Args:
            connect: how to reach the broker, with an observer's credentials.
            cluster: the cluster to watch.
            name: of this process at the broker; with credentials, whom they name.
            connect_timeout_s: how long to wait for the broker at first; None for ever.
            on_heard: called on the network thread with every message that told something, after
                it was taken in; it must only enqueue.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: no connection.
        """
        self._lock = threading.Lock()
        self._state = ClusterState(cluster, time.monotonic)
        self._on_heard = on_heard
        self._failure: BrokerError | None = None
        self._connection = connect(
            ConnectionSettings(name=name, session_expiry_s=0, connect_timeout_s=connect_timeout_s),
            Callbacks(
                on_delivery=self._hear,
                on_connected=lambda _session_present: self._set_connected(True),
                on_disconnected=lambda _reason: self._set_connected(False),
                on_failed=self._fail,
            ),
        )
        with self._lock:  # a loss in between is told after it
            self._state.set_connected(self._connection.is_connected)
        # What is retained comes last: when it is in view, nothing that is said is missed any more.
        for topic_filter in (
            *BROKER_TOPICS,
            topics.metrics_filter(cluster),
            topics.event_filter(cluster),
            topics.status_filter(cluster),
            topics.plan_topic(cluster),
        ):
            self._connection.subscribe(topic_filter)

    def __enter__(self) -> "Observer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; the broker keeps nothing for this name."""
        self._connection.close(forget_session=True)

    def view(self) -> ClusterView:
        """What is known now. Thread-safe.

        Raises:
            BrokerError: the broker has refused us something that trying again does not mend.
        """
        if self._failure is not None:
            raise self._failure
        with self._lock:
            return self._state.view()

    def _hear(self, delivery: Delivery) -> None:
        delivery.ack()
        with self._lock:
            told = self._state.take(delivery)
        if told and self._on_heard is not None:
            self._on_heard(delivery)

    def _set_connected(self, is_connected: bool) -> None:
        with self._lock:
            self._state.set_connected(is_connected)

    def _fail(self, error: BrokerError) -> None:
        self._failure = error
