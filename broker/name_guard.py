"""Notices that another process lives under our name, and says which of the two is to end.

A broker lets one connection of a name in. Two processes of one name throw each other out for ever,
and each sees a connection that is lost every second, as on a bad network: Mosquitto 2.0.11 closes
without a word, 2.1 says 0x8E. What a bad network cannot do is speak. So after each reconnect a
process sends itself a greeting and leaves it unacknowledged for a while. It belongs to the session,
and whoever takes the session over hears it. Greetings of another process whose connections grow in
number from one of ours to the next are of one that lives; the younger of the two ends.
"""

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, ValidationError

from broker.transport import Callbacks, Connection, Delivery
from contract.errors import BrokerError, NameTakenError
from contract.frozen import FrozenModel

HELD_S = 5.0
"""How long a greeting stays unacknowledged: longer than the other one takes to come back."""
SIGHTINGS = 3
"""Times that another process must have been heard, each on a later connection of its and ours: what
a process that died has left behind comes all at once."""
SAME_AGE_MS = 5000
"""Processes whose starts are so near count as equally old: greetings take a while."""
MAX_GREETING_BYTES = 512
OTHERS_REMEMBERED = 8

log = logging.getLogger(__name__)


class Greeting(FrozenModel):
    """What a process tells its own session: who it is, and how often it has connected."""

    kind: Literal["greeting"] = "greeting"
    process: str = Field(pattern=r"^[0-9a-f]{16}$")
    connection: int = Field(ge=1)
    age_ms: int = Field(ge=0)


@dataclass(slots=True)
class _Other:
    connection: int
    own_connection: int
    sightings: int = 1


class Rivals:
    """The other processes of our name, as their greetings tell. Pure."""

    def __init__(self, process: str) -> None:
        self.process = process
        self._others: OrderedDict[str, _Other] = OrderedDict()

    def note(self, greeting: Greeting, own_connection: int) -> bool:
        """Take a greeting of another in; whether that one lives now beside us."""
        other = self._others.get(greeting.process)
        if other is None:
            self._others[greeting.process] = _Other(greeting.connection, own_connection)
            while len(self._others) > OTHERS_REMEMBERED:
                self._others.popitem(last=False)
            return False
        if greeting.connection > other.connection and own_connection > other.own_connection:
            other.connection, other.own_connection = greeting.connection, own_connection
            other.sightings += 1
        return other.sightings >= SIGHTINGS

    def is_ours_to_end(self, greeting: Greeting, own_age_ms: int) -> bool:
        """Whether we are the younger one.

        Both sides come to the same answer, but for ages that differ by just about
        :data:`SAME_AGE_MS`: then they are asked again at the next greeting.
        """
        if abs(own_age_ms - greeting.age_ms) > SAME_AGE_MS:
            return own_age_ms < greeting.age_ms
        return self.process > greeting.process


class NameGuard:
    """Guards the name of one process: wrap the callbacks, then :meth:`begin`."""

    def __init__(self, name: str, own_topic: str) -> None:
        """``own_topic``: one that ``name`` may both write and read, and does subscribe to."""
        self._name, self._topic = name, own_topic
        self._rivals = Rivals(secrets.token_hex(8))
        self._started = time.monotonic()
        self._connections = 0
        self._connection: Connection | None = None
        self._fail: Callable[[BrokerError], None] = lambda _error: None
        self._failed = False

    def wrap(self, callbacks: Callbacks) -> Callbacks:
        """The same callbacks, which hear nothing of greetings."""
        self._fail = callbacks.on_failed

        def on_connected(session_present: bool) -> None:
            self._connections += 1
            callbacks.on_connected(session_present)
            if self._connection is not None:
                self._greet(self._connection)

        def on_delivery(delivery: Delivery) -> None:
            if not self._take(delivery):
                callbacks.on_delivery(delivery)

        return replace(callbacks, on_connected=on_connected, on_delivery=on_delivery)

    def begin(self, connection: Connection) -> None:
        """Greet on this connection from its next beginning on; the first can take over nobody."""
        self._connection = connection

    def _age_ms(self) -> int:
        return int((time.monotonic() - self._started) * 1000)

    def _greet(self, connection: Connection) -> None:
        greeting = Greeting(
            process=self._rivals.process, connection=self._connections, age_ms=self._age_ms()
        )
        try:
            connection.publish(self._topic, greeting.model_dump_json().encode())
        except BrokerError as error:
            log.debug("no greeting: %s", error)

    def _take(self, delivery: Delivery) -> bool:
        if delivery.topic != self._topic or len(delivery.payload) > MAX_GREETING_BYTES:
            return False
        try:
            greeting = Greeting.model_validate_json(delivery.payload)
        except ValidationError:
            return False
        ours = greeting.process == self._rivals.process
        if ours and greeting.connection == self._connections:
            later = threading.Timer(HELD_S, delivery.ack)
            later.daemon = True
            later.start()
            return True
        delivery.ack()  # one of ours at most is held: the receive maximum is for batches
        if not ours and self._rivals.note(greeting, self._connections) and not self._failed:
            self._judge(greeting)
        return True

    def _judge(self, greeting: Greeting) -> None:
        if not self._rivals.is_ours_to_end(greeting, self._age_ms()):
            log.error("another process uses the name %r at the broker: stop it", self._name)
            return
        self._failed = True
        self._fail(
            NameTakenError(
                f"another process uses the name {self._name!r} at the broker, and was there first: "
                "stop it, or give this one a name (and credentials) of its own"
            )
        )
