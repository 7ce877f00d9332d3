"""An in-process broker with the interface of the real one: `infer --local`, and quick tests.

Keeps what the protocol rests on: retained messages, wills, at-least-once delivery with manual
acknowledgement, the receive maximum, redelivery to a session that comes back. One thread for each
connection runs its callbacks, as paho's network thread does. Payloads are handed on uncopied.
"""

import itertools
import queue
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from paho.mqtt.client import topic_matches_sub

from broker.transport import (
    AckToken,
    Callbacks,
    Connection,
    ConnectionSettings,
    Delivery,
    PublishOutcome,
)
from contract.errors import BrokerUnreachableError


@dataclass
class _Session:
    """What the broker knows of one name."""

    filters: list[tuple[str, int]] = field(default_factory=list)
    waiting: deque[tuple[str, bytes, int, bool]] = field(default_factory=deque)
    unacknowledged: dict[int, tuple[str, bytes, int, bool]] = field(default_factory=dict)
    connection: "MemoryConnection | None" = None


class MemoryBroker:
    """Routes messages between the connections that :meth:`connect` makes."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[str, bytes] = {}
        self._packet_ids = itertools.count(1)

    def connect(self, settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        """See :class:`broker.transport.Connect`. A second connection of a name ends the first."""
        with self._lock:
            session_present = settings.name in self._sessions
            session = self._sessions.setdefault(settings.name, _Session())
            if session.connection is not None:
                session.connection.drop()
            connection = MemoryConnection(self, settings, callbacks, session)
            session.connection = connection
            for entry in reversed(session.unacknowledged.values()):
                session.waiting.appendleft(entry)
            session.unacknowledged.clear()
            connection.post(lambda: callbacks.on_connected(session_present))
            self._pump(session)
        return connection

    def _publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> PublishOutcome:
        with self._lock:
            if retain and payload:
                self._retained[topic] = payload
            elif retain:
                self._retained.pop(topic, None)
            receivers = [
                (session, min(qos, max(granted)))
                for session in self._sessions.values()
                if (granted := [q for f, q in session.filters if topic_matches_sub(f, topic)])
            ]
            for session, granted_qos in receivers:
                self._hand_over(session, (topic, payload, granted_qos, False))
        return PublishOutcome.ACCEPTED if receivers else PublishOutcome.NO_SUBSCRIBER

    def _subscribe(self, session: _Session, topic_filter: str, qos: int) -> None:
        with self._lock:
            session.filters.append((topic_filter, qos))
            for topic, payload in self._retained.items():
                if topic_matches_sub(topic_filter, topic):
                    self._hand_over(session, (topic, payload, qos, True))

    def _hand_over(self, session: _Session, entry: tuple[str, bytes, int, bool]) -> None:
        if entry[2]:
            session.waiting.append(entry)
            self._pump(session)
        elif session.connection is not None:  # the receive maximum does not hold QoS 0 back
            session.connection.deliver(next(self._packet_ids), entry)

    def _pump(self, session: _Session) -> None:
        connection = session.connection
        if connection is None:
            return
        while session.waiting:
            if len(session.unacknowledged) >= connection.receive_maximum:
                return
            entry = session.waiting.popleft()
            packet_id = next(self._packet_ids)
            session.unacknowledged[packet_id] = entry
            connection.deliver(packet_id, entry)

    def _acknowledge(self, connection: "MemoryConnection", packet_id: int) -> None:
        with self._lock:
            session = connection.session
            if session.connection is connection:
                session.unacknowledged.pop(packet_id, None)
                self._pump(session)

    def _detach(self, connection: "MemoryConnection", forget_session: bool, lost: bool) -> None:
        with self._lock:
            session = connection.session
            if session.connection is not connection:
                return
            session.connection = None
            if forget_session:
                self._sessions.pop(connection.settings.name, None)
            will = connection.settings.will
            if lost and will is not None:
                self._publish(will.topic, will.payload, 1, retain=True)


class MemoryConnection:
    """A :class:`broker.transport.Connection` of a :class:`MemoryBroker`."""

    def __init__(
        self,
        broker: MemoryBroker,
        settings: ConnectionSettings,
        callbacks: Callbacks,
        session: _Session,
    ) -> None:
        self.settings, self.session = settings, session
        self.receive_maximum = settings.receive_maximum
        self.reconnects = 0
        self.is_connected = True
        self.max_packet_bytes: int | None = None
        self._broker, self._callbacks = broker, callbacks
        self._tasks: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, name=f"{settings.name}-network", daemon=True
        )
        self._thread.start()

    def post(self, task: object) -> None:
        """Run a callback on the connection's thread."""
        self._tasks.put(task)

    def deliver(self, packet_id: int, entry: tuple[str, bytes, int, bool]) -> None:
        """Hand one message to the owner, on the connection's thread."""
        topic, payload, qos, retained = entry
        token = AckToken(lambda: self._broker._acknowledge(self, packet_id))
        delivery = Delivery(topic, payload, qos, retained, token)
        self.post(lambda: self._callbacks.on_delivery(delivery))

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """See :class:`broker.transport.Connection`."""
        self._broker._subscribe(self.session, topic_filter, qos)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> Future[PublishOutcome]:
        """See :class:`broker.transport.Connection`."""
        future: Future[PublishOutcome] = Future()
        if not self.is_connected:
            future.set_exception(BrokerUnreachableError("in-memory connection is closed"))
            return future
        outcome = self._broker._publish(topic, payload, qos, retain)
        # Settled on our thread, as paho does, so that code which waits in a callback hangs here too
        self.post(lambda: future.set_result(outcome))
        return future

    def drop(self) -> None:
        """Lose the connection as a dead process does: the will is published."""
        self._end(forget_session=False, lost=True)
        self.post(lambda: self._callbacks.on_disconnected("dropped"))

    def close(self, forget_session: bool = False) -> None:
        """See :class:`broker.transport.Connection`."""
        self._end(forget_session, lost=False)
        self.post(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    def _end(self, forget_session: bool, lost: bool) -> None:
        self.is_connected = False
        self._broker._detach(self, forget_session, lost)

    def _run(self) -> None:
        while callable(task := self._tasks.get()):
            task()
