"""Watches the one trace that a broker leaves of messages which it acknowledged and threw away.

When a receiver's queue is full, Mosquitto answers the sender with success and drops the message; a
counter among its own topics is all that tells. The batch itself is saved by the client's deadline.
"""

from collections.abc import Callable
from dataclasses import replace

from broker.transport import Callbacks, Delivery
from contract import topics

MAX_DIGITS = 20


class DropCounter:
    """Turns the broker's running total into increases. Pure."""

    def __init__(self) -> None:
        self._last: int | None = None

    def take(self, payload: bytes, retained: bool) -> int:
        """How many more were dropped since the total was last heard.

        The first one is the past if it was ``retained``, else of a broker that has just started. A
        total that is smaller than before is of a broker that was started again.
        """
        if len(payload) > MAX_DIGITS or not payload.isdigit():
            return 0
        total, last = int(payload), self._last
        self._last = total
        if last is None:
            return 0 if retained else total
        return total if total < last else total - last


def describe_drops(count: int, where: str) -> str:
    """What an event says of it. ``where``: which broker."""
    return (
        f"{where} dropped {count:,} messages, a receiver's queue being full; they are sent again "
        "when their time is up: use a smaller window, or raise max_queued_messages in "
        "mosquitto.conf"
    )


def watch_drops(callbacks: Callbacks, tell: Callable[[int], None]) -> Callbacks:
    """The same callbacks, which hear nothing of the counter.

    Args:
        callbacks: of one connection, which subscribes to ``topics.BROKER_DROPPED``.
        tell: called on its network thread with how many more were dropped.
    """
    counter = DropCounter()

    def on_delivery(delivery: Delivery) -> None:
        if delivery.topic != topics.BROKER_DROPPED:
            callbacks.on_delivery(delivery)
            return
        delivery.ack()
        dropped = counter.take(delivery.payload, delivery.retained)
        if dropped:
            tell(dropped)

    return replace(callbacks, on_delivery=on_delivery)
