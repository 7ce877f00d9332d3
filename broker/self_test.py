"""The first message of a process is to itself: what its broker keeps from it, it hears of at once.

Mosquitto grants every subscription and filters when it delivers: a process without the right to
read looks healthy, and waits for ever. So each one publishes on topics of its own, one under each
filter that it lives on, and goes on when it has heard them all (docs/adr/0026). They travel at
QoS 0: at QoS 1 they would wait behind the batches that a kept session delivers first.
"""

import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from broker.name_guard import NameGuard
from broker.transport import Callbacks, Connection, Delivery
from contract.activation import MAX_HEADER_BYTES
from contract.errors import MessageTooLargeError, NotAuthorisedError
from contract.plan import Plan
from contract.version import RELEASED_UNIX_S

PATIENCE_S = 10.0
"""Without a single message for so long, while connected: it is not slowness."""
AT_MOST_S = 60.0
"""However much else arrives meanwhile."""
REPEAT_S = 1.0
_POLL_S = 0.1
_BEGINNING = b'{"kind":"self_test",'


def clock_complaint(now_unix_s: float) -> str | None:
    """What is wrong with this machine's clock, if it is certain that something is.

    Nothing of ours rests on it but certificates, which are not valid yet in 1970.
    """
    if now_unix_s >= RELEASED_UNIX_S:
        return None
    shown = datetime.fromtimestamp(now_unix_s, UTC).strftime("%Y-%m-%d %H:%M")
    made = datetime.fromtimestamp(RELEASED_UNIX_S, UTC).strftime("%Y-%m-%d")
    return (
        f"this machine's clock says {shown} UTC, and this release was made on {made}: a broker's "
        "certificate will be refused as not yet valid; set the clock (`timedatectl`, a time server)"
    )


def rights_complaint(name: str, missing: Iterable[str], waited_s: float) -> str:
    """A process does not hear itself: what that means, and what to do."""
    return (
        f"{name} does not hear its own messages on {', '.join(sorted(missing))} after "
        f"{waited_s:.0f} s: the broker's access control does not let user {name} write there, or "
        "does not let it read there; run `shardline deploy render` again, copy the broker's folder "
        "to its machine and restart the broker"
    )


def check_packet_size(plan: Plan, limit_bytes: int | None) -> None:
    """Refuse a plan whose full batches this broker would not take, before one is computed.

    Args:
        plan: what is about to be published, served or fed.
        limit_bytes: the largest packet that the broker takes; None is no limit.

    Raises:
        MessageTooLargeError: the tensors of its largest message alone are larger.
    """
    tensor_bytes = plan.max_message_bytes() - MAX_HEADER_BYTES
    if limit_bytes is not None and tensor_bytes > limit_bytes and not plan.edge_brokers:
        raise MessageTooLargeError(f"plan {plan.name}", tensor_bytes, limit_bytes)


class SelfTest:
    """One process' test of one connection: wrap the callbacks, subscribe, :meth:`run`.

    From then on it also guards the process' name: `on_failed` is told with a NameTakenError.
    """

    def __init__(self, name: str, own_topics: Sequence[str]) -> None:
        """``own_topics``: what ``name`` may both write and read; see ``contract/topics.py``."""
        self._name = name
        self._guard = NameGuard(name, own_topics[0])
        self._own = frozenset(own_topics)
        self._message = _BEGINNING + b'"nonce":"%s"}' % secrets.token_hex(8).encode()
        self._changed = threading.Condition()
        self._missing = set(own_topics)
        self._heard_at = time.monotonic()

    def wrap(self, callbacks: Callbacks) -> Callbacks:
        """The same callbacks, which hear nothing of the test and of greetings."""

        def on_delivery(delivery: Delivery) -> None:
            if not self._take(delivery):
                callbacks.on_delivery(delivery)

        return self._guard.wrap(replace(callbacks, on_delivery=on_delivery))

    def _take(self, delivery: Delivery) -> bool:
        self._heard_at = time.monotonic()
        if delivery.topic not in self._own or not delivery.payload.startswith(_BEGINNING):
            return False
        delivery.ack()
        if delivery.payload == self._message:  # else of an earlier start of ours
            with self._changed:
                self._missing.discard(delivery.topic)
                self._changed.notify_all()
        return True

    def run(
        self,
        connection: Connection,
        *,
        cancelled: threading.Event | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Wait until everything has been heard. Time without a broker does not count.

        Args:
            connection: to the broker in question.
            cancelled: ends the wait without a verdict.
            timeout_s: ends it too, if the broker is away then; None waits for ever.

        Raises:
            NotAuthorisedError: something does not come back; says on which topics.
        """
        self._guard.begin(connection)
        started = connected_since = time.monotonic()
        sent_at = -REPEAT_S
        while not (cancelled is not None and cancelled.is_set()):
            now = time.monotonic()
            with self._changed:
                missing = frozenset(self._missing)
            if not missing:
                return
            timed_out = timeout_s is not None and now - started > timeout_s
            if not connection.is_connected:
                connected_since = now
                if timed_out:
                    return
            elif (
                timed_out
                or now - max(connected_since, self._heard_at) > PATIENCE_S
                or now - connected_since > AT_MOST_S
            ):
                raise NotAuthorisedError(
                    rights_complaint(self._name, missing, now - connected_since)
                )
            elif now - sent_at >= REPEAT_S:
                sent_at = now
                for topic in missing:
                    connection.publish(topic, self._message, qos=0)
            with self._changed:
                self._changed.wait_for(lambda: not self._missing, timeout=_POLL_S)
