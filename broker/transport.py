"""The seam to the broker: what every connection offers, whoever carries the messages.

Callbacks run on the connection's own network thread. They must only enqueue: the thread that runs
them also keeps the connection alive.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from contract.errors import BrokerError, SettingsError

DEFAULT_PORT, DEFAULT_TLS_PORT = 1883, 8883  # as IANA has registered them


class PublishOutcome(Enum):
    """What the broker said when it acknowledged a QoS 1 publish."""

    ACCEPTED = "accepted"
    NO_SUBSCRIBER = "no subscriber"  # accepted, but nobody is there: a hint, never a proof


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a connection by TLS: who vouches for the broker, and who we are to it.

    Without ``cert_file`` and ``key_file`` a user name and a password say who we are.
    """

    ca_file: Path
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is and who we are to it. The password never shows in a repr."""

    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_address(
    text: str,
    username: str | None = None,
    password: str | None = None,
    tls: TlsFiles | None = None,
) -> BrokerAddress:
    """``host`` or ``host:port`` (an IPv6 address in brackets); the port is 8883 by TLS, else 1883.

    Raises:
        SettingsError: not such a text.
    """
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT if tls is None else DEFAULT_TLS_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"broker {text!r}: expected host or host:port, for example pi-0:1883")
    try:
        host.encode("idna")  # as looking it up would, deep in the network code
    except UnicodeError as error:
        raise SettingsError(
            f"broker {text!r}: no host can be called {host!r} ({error}); for example pi-0:1883"
        ) from error
    return BrokerAddress(host, int(port), username, password, tls)


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when this connection is lost."""

    topic: str
    payload: bytes


class AckToken:
    """Acknowledges one delivery once, and only on the connection that it came by.

    MQTT packet identifiers are reused by every new connection: a late acknowledgement sent on a
    newer one would make the broker forget another message.
    """

    __slots__ = ("_lock", "_send", "_used")

    def __init__(self, send: Callable[[], None]) -> None:
        self._send, self._used, self._lock = send, False, threading.Lock()

    def use(self) -> None:
        """Send the acknowledgement, the first time only."""
        with self._lock:
            if self._used:
                return
            self._used = True
        self._send()


@dataclass(frozen=True, slots=True)
class Delivery:
    """One received message. At QoS 1 the broker keeps it until :meth:`ack`."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
    token: AckToken

    def ack(self) -> None:
        """Tell the broker that the message is done with; does nothing on a newer connection."""
        self.token.use()


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the owner of a connection wants to hear. All run on the network thread.

    ``on_failed``: something that trying again does not mend, such as a refused subscription; the
    owner should end. It may run on the thread that subscribes, too.
    """

    on_delivery: Callable[[Delivery], None]
    on_connected: Callable[[bool], None] = lambda _session_present: None
    on_disconnected: Callable[[str], None] = lambda _reason: None
    on_failed: Callable[[BrokerError], None] = lambda _error: None


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How one process connects.

    ``receive_maximum`` bounds the unacknowledged QoS 1 messages that the broker may send us.
    ``cancelled`` ends the first wait for the broker early.
    ``session_expiry_s`` is how long the broker keeps subscriptions and messages after a loss.
    """

    name: str
    receive_maximum: int = 64
    keepalive_s: int = 15
    session_expiry_s: int = 600
    will: Will | None = None
    connect_timeout_s: float | None = 10.0
    cancelled: threading.Event | None = None


class Connection(Protocol):
    """One client of the broker."""

    @property
    def is_connected(self) -> bool:
        """Whether the broker is reachable now."""
        ...

    @property
    def reconnects(self) -> int:
        """How often the connection was made again after the first time."""
        ...

    @property
    def max_packet_bytes(self) -> int | None:
        """The largest packet that the broker takes; None while it has named no limit."""
        ...

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Subscribe, now and after every reconnect.

        At QoS 0 the receive maximum holds nothing back: only for what is retained, since a message
        that is lost with the connection then comes with the next one.
        """
        ...

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> Future[PublishOutcome]:
        """Publish; the future ends when the broker has acknowledged (QoS 1) or taken (QoS 0) it.

        While the broker is away, QoS 1 messages wait and QoS 0 messages are dropped (the future
        then fails with BrokerUnreachableError). The future fails with NotAuthorisedError when the
        broker refuses the topic, and with MessageTooLargeError when the broker comes back with a
        smaller limit. Never wait for it inside a callback.

        Raises:
            MessageTooLargeError: the broker would cut the connection; nothing was sent.
        """
        ...

    def close(self, forget_session: bool = False) -> None:
        """Disconnect in order (no will). ``forget_session`` lets the broker drop what it holds."""
        ...


class Connect(Protocol):
    """Opens a connection: paho's, or the in-memory one."""

    def __call__(self, settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        """Connect and wait until it stands.

        Raises:
            BrokerUnreachableError: not within ``connect_timeout_s``.
            NotAuthorisedError: wrong user name or password.
        """
        ...
