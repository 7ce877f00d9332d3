"""The only place that knows paho: MQTT 5 with persistent sessions and manual acknowledgement.

Settings that cost hours when missing (measured; docs/adr/0005):
TCP_NODELAY, since paho leaves Nagle on and a 75 KB hop then takes 22 ms instead of 0.4;
clean_start=False even at first, since Mosquitto never saves a session that began with True;
reading the reason code of every PUBACK, since paho calls refused publishes published.
"""

import logging
import random
import socket
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.answers import (
    connection_refusal,
    is_final,
    is_taken_over,
    no_answer,
    publish_outcome,
    subscription_refusal,
)
from broker.heap import keep_message_memory
from broker.outbox import MAX_MESSAGES, Answer, Outbox
from broker.paho_client import PahoClient, packet_bytes
from broker.self_test import clock_complaint
from broker.subscriptions import Answers, Subscriptions
from broker.tls import client_context, explain, may_pass
from broker.transport import (
    AckToken,
    BrokerAddress,
    Callbacks,
    Connect,
    Connection,
    ConnectionSettings,
    Delivery,
    PublishOutcome,
    parse_address,
)
from contract import topics
from contract.errors import (
    BrokerError,
    BrokerUnreachableError,
    MessageTooLargeError,
    NotAuthorisedError,
)

log = logging.getLogger(__name__)

_POLL_S = 0.1


class PahoConnection:
    """A :class:`broker.transport.Connection` over TCP."""

    def __init__(
        self, address: BrokerAddress, settings: ConnectionSettings, callbacks: Callbacks
    ) -> None:
        self._address, self._settings, self._callbacks = address, settings, callbacks
        self._lock = threading.Lock()  # guards the fields below; never held while calling paho
        self._generation = 0
        self._connected = False
        self._subscriptions = Subscriptions()
        self._outbox = Outbox()
        self._max_packet_bytes: int | None = None
        self._failure: BrokerError | None = None
        self._first_answer = threading.Event()
        self._client = self._make_client()

    def _make_client(self) -> mqtt.Client:
        client = PahoClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._settings.name,
            protocol=mqtt.MQTTv5,
            manual_ack=True,
        )
        if self._address.username is not None:
            client.username_pw_set(self._address.username, self._address.password)
        if self._address.tls is not None:
            client.tls_set_context(client_context(self._address.tls))
        if self._settings.will is not None:
            will = self._settings.will
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.max_queued_messages_set(MAX_MESSAGES)
        client.on_socket_open = _no_delay
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        self._spread_reconnects(client)
        return client

    @staticmethod
    def _spread_reconnects(client: mqtt.Client) -> None:
        # paho doubles its delay without jitter: a drawer of Pis would come back all at once.
        client.reconnect_delay_set(
            random.uniform(0.5, 1.5),  # type: ignore[arg-type]  # any number of seconds works
            random.uniform(3.0, 5.0),  # type: ignore[arg-type]
        )

    def open(self) -> None:
        """Connect and wait for the broker's first answer.

        Raises:
            BrokerUnreachableError: no answer within the settings' ``connect_timeout_s``.
            BrokerUntrustedError: its certificate is not one that we trust.
            NotAuthorisedError: wrong user name or password, or it refuses our certificate.
        """
        keep_message_memory()
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self._settings.session_expiry_s
        properties.ReceiveMaximum = self._settings.receive_maximum
        self._client.connect_async(
            self._address.host,
            self._address.port,
            keepalive=self._settings.keepalive_s,
            clean_start=False,
            properties=properties,
        )
        self._client.loop_start()
        waited_s = self._wait_for_the_first_answer()
        if self._failure is not None or not self._first_answer.is_set():
            self._stop_network()
            raise self._failure or no_answer(self._address, waited_s)

    def _wait_for_the_first_answer(self) -> float:
        """Until it comes, the time is up, or we are cancelled; the seconds that took."""
        limit_s, cancelled = self._settings.connect_timeout_s, self._settings.cancelled
        started = time.monotonic()
        while not self._first_answer.wait(_POLL_S):
            waited_s = time.monotonic() - started
            if limit_s is not None and waited_s >= limit_s:
                break
            if cancelled is not None and cancelled.is_set():
                break
        return time.monotonic() - started

    @property
    def is_connected(self) -> bool:
        """See :class:`broker.transport.Connection`."""
        return self._connected

    @property
    def reconnects(self) -> int:
        """See :class:`broker.transport.Connection`."""
        return max(0, self._generation - 1)

    @property
    def max_packet_bytes(self) -> int | None:
        """See :class:`broker.transport.Connection`."""
        return self._max_packet_bytes

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """See :class:`broker.transport.Connection`."""
        with self._lock:
            self._subscriptions.add(topic_filter, qos)
            connected = self._connected
        if connected:
            self._send_subscribe(topic_filter, qos)

    def _send_subscribe(self, topic_filter: str, qos: int) -> None:
        _result, mid = self._client.subscribe(topic_filter, qos=qos)
        if mid is None:
            return
        with self._lock:
            early = self._subscriptions.ask(mid, topic_filter)
        if early is not None:
            self._judge(topic_filter, early)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> Future[PublishOutcome]:
        """See :class:`broker.transport.Connection`."""
        future: Future[PublishOutcome] = Future()
        limit, size = self._max_packet_bytes, packet_bytes(topic, payload)
        if limit is not None and size > limit:
            # An oversized packet makes the broker cut the connection, and paho send it again.
            raise MessageTooLargeError(topic, size, limit)
        if qos == 0 and not self._connected:
            future.set_exception(BrokerUnreachableError(f"{self._address}: not connected"))
            return future
        if not self._outbox.begin(size):
            future.set_exception(
                BrokerError(
                    f"publish to {topic}: {self._outbox.waiting_bytes:,} bytes wait for the broker "
                    f"at {self._address} already"
                )
            )
            return future
        try:
            info = self._client.publish(topic, payload, qos=qos, retain=retain)
        except BaseException:
            self._outbox.give_up(size)
            raise
        # paho keeps a QoS 1 message for the next connection, and drops one at QoS 0.
        kept = info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS or (
            qos > 0 and info.rc == MQTTErrorCode.MQTT_ERR_NO_CONN
        )
        early = self._outbox.keep(info.mid, future, size, qos=qos, kept=kept)
        if early is not None:
            self._settle(future, early, topic)
        elif not kept:
            future.set_exception(BrokerError(f"publish to {topic}: {mqtt.error_string(info.rc)}"))
        return future

    def close(self, forget_session: bool = False) -> None:
        """See :class:`broker.transport.Connection`."""
        properties = None
        if forget_session:
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
        self._client.disconnect(properties=properties)
        self._stop_network()

    def _stop_network(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()  # paho leaves its wake-up sockets to the garbage collector
        self._connected = False

    # Callbacks: all on paho's network thread.

    def _on_connect(
        self, client: mqtt.Client, _data: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            failure = connection_refusal(self._address, reason)
            log.error("%s", failure)
            if is_final(reason):
                self._failure = failure
                self._first_answer.set()
            return
        with self._lock:
            self._generation += 1
            self._connected = True
            self._failure = None
            self._max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
            filters = self._subscriptions.begin()
        self._drop_what_is_too_large(client)
        for topic_filter, qos in filters:
            self._send_subscribe(topic_filter, qos)
        self._callbacks.on_connected(bool(flags.session_present))
        self._first_answer.set()

    def _drop_what_is_too_large(self, client: mqtt.Client) -> None:
        """A broker that came back with a smaller limit would cut us off at each try to resend."""
        limit = self._max_packet_bytes
        if limit is None or not isinstance(client, PahoClient):
            return
        for mid, topic, size in client.drop_larger_than(limit):
            error = MessageTooLargeError(topic, size, limit)
            log.error("%s", error)
            future = self._outbox.take(mid, error)
            if future is not None:
                self._settle(future, error, topic)

    def _on_connect_fail(self, client: mqtt.Client, _data: Any) -> None:
        if not self._note_tls_failure(client):
            log.warning("cannot reach the broker at %s, trying again", self._address)

    def _note_tls_failure(self, client: mqtt.Client) -> bool:
        """Whether TLS says why there is no connection; if waiting is no help, the wait ends."""
        error = client.tls_failure if isinstance(client, PahoClient) else None
        if error is None or self._address.tls is None:
            return False
        self._failure = explain(error, str(self._address), self._address.tls)
        log.error("%s", self._failure)
        if not may_pass(error):
            self._first_answer.set()
        return True

    def _on_disconnect(
        self, client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        with self._lock:
            was_connected, self._connected = self._connected, False
        for future in self._outbox.take_unsent():
            future.set_exception(BrokerUnreachableError(f"{self._address}: the connection is lost"))
        if not was_connected:
            self._note_tls_failure(client)
        else:  # paho calls twice for one loss
            self._spread_reconnects(client)
            if is_taken_over(reason):
                log.error(
                    "another process uses the name %r at the broker at %s: stop one of them (or an "
                    "edge's own broker is this one under another address)",
                    self._settings.name,
                    self._address,
                )
            self._callbacks.on_disconnected(str(reason))

    def _on_message(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        generation, mid, qos = self._generation, message.mid, message.qos

        def send_ack() -> None:
            if qos and generation == self._generation and self._connected:
                client.ack(mid, qos)

        self._callbacks.on_delivery(
            Delivery(message.topic, bytes(message.payload), qos, message.retain, AckToken(send_ack))
        )

    def _on_publish(
        self, _client: mqtt.Client, _data: Any, mid: int, reason: ReasonCode, _properties: Any
    ) -> None:
        future = self._outbox.take(mid, reason)
        if future is not None:
            self._settle(future, reason, "a topic")

    def _on_subscribe(
        self, _client: mqtt.Client, _data: Any, mid: int, reasons: list[ReasonCode], _props: Any
    ) -> None:
        with self._lock:
            topic_filter = self._subscriptions.answer(mid, reasons)
        if topic_filter is not None:
            self._judge(topic_filter, reasons)

    def _judge(self, topic_filter: str, reasons: Answers) -> None:
        """What the broker has answered to a request for this filter."""
        name = self._settings.name
        failure = subscription_refusal(self._address, name, topic_filter, reasons)
        if failure is not None:
            log.error("%s", failure)
            if not topics.is_optional(topic_filter):
                self._callbacks.on_failed(failure)

    def _settle(self, future: Future[PublishOutcome], answer: Answer, topic: str) -> None:
        if isinstance(answer, BrokerError):
            future.set_exception(answer)
            return
        try:
            outcome = publish_outcome(self._address, topic, answer)
        except NotAuthorisedError as error:
            future.set_exception(error)
        else:
            future.set_result(outcome)


def _no_delay(_client: mqtt.Client, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@dataclass(frozen=True, slots=True)
class Connector:
    """How to connect to one broker, and as the same user to others. A :class:`Connect`."""

    address: BrokerAddress

    def __call__(self, settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        """See :class:`broker.transport.Connect`."""
        complaint = clock_complaint(time.time())
        if complaint is not None:
            log.warning("%s", complaint)
        connection = PahoConnection(self.address, settings, callbacks)
        connection.open()
        return connection

    def elsewhere(self, address: str) -> Connect | None:
        """How to connect to the broker at ``address``; None if that is this one.

        Raises:
            SettingsError: not such an address.
        """
        there = parse_address(address, tls=self.address.tls)
        if (there.host.lower(), there.port) == (self.address.host.lower(), self.address.port):
            return None  # a second connection of one name would throw the first one out
        return Connector(replace(self.address, host=there.host, port=there.port))
