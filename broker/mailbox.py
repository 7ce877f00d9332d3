"""What a network thread hands to the one thread that reads it: bounded, whoever sends.

The receive maximum bounds what comes at QoS 1 and is not acknowledged yet; nothing bounds QoS 0, so
that is dropped once too much of it waits. What is larger than what is expected is not kept.
"""

import queue

from broker.transport import Delivery
from contract.errors import BrokerError

MAX_WAITING = 256
"""At QoS 0 a sender repeats what is not answered: requests for pieces of a shard, six a device."""


class Connected:
    """The connection stands (again)."""


Heard = Delivery | BrokerError | Connected


class Mailbox:
    """A queue of deliveries, and of what else the network thread has to tell. It never waits."""

    def __init__(self, max_bytes: int) -> None:
        """``max_bytes``: of the largest message that anybody may have for us."""
        self._max_bytes = max_bytes
        self._waiting: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self.dropped = 0

    def put(self, delivery: Delivery) -> None:
        """Keep a delivery, or drop it and let the broker forget it."""
        too_many = delivery.qos == 0 and self._waiting.qsize() >= MAX_WAITING
        if too_many or len(delivery.payload) > self._max_bytes:
            self.dropped += 1
            delivery.ack()
        else:
            self._waiting.put(delivery)

    def note(self, what: BrokerError | Connected) -> None:
        """Keep what is no delivery."""
        self._waiting.put(what)

    def get(self, timeout_s: float) -> Heard | None:
        """The next one, None if none comes in time."""
        try:
            return self._waiting.get(timeout=timeout_s)
        except queue.Empty:
            return None
