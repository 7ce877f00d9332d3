"""What the network threads hand to the one thread that owns a pipeline. They only enqueue."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future

from broker.transport import Delivery, PublishOutcome
from client.batch import NobodyThere, Stop
from contract.activation import BatchId
from contract.errors import BrokerError, NotAuthorisedError
from contract.plan import MAX_PLAN_BYTES

Heard = Delivery | bool | NobodyThere | Stop | None | BaseException
"""What comes out; a boolean is a connect, with session present, and None only ends the wait."""


class Inbox:
    """A queue that several connections fill and one thread empties."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._refused = 0
        self.max_bytes = MAX_PLAN_BYTES
        """Of the largest message that anybody may have for us; whoever knows the plan raises it."""

    @property
    def refused(self) -> int:
        """Deliveries that were not let in."""
        return self._refused

    def hear(self, delivery: Delivery) -> None:
        """Take a delivery.

        Not what comes at QoS 0, which nothing bounds, nor what is larger than anything of ours:
        none of ours does either, and the rest would fill our memory before we have looked at it.
        """
        if delivery.qos == 0 or len(delivery.payload) > self.max_bytes:
            with self._lock:  # each connection has a thread of its own
                self._refused += 1
            delivery.ack()
        else:
            self._queue.put(delivery)

    def note_connected(self, session_present: bool) -> None:
        """A connection stands; False says that its broker has forgotten us."""
        self._queue.put(session_present)

    def note_published(
        self, batch_id: BatchId, attempt: int, future: Future[PublishOutcome]
    ) -> None:
        """Take what a broker said of an attempt, unless all is well."""
        error = future.exception()
        if isinstance(error, NotAuthorisedError):
            self._queue.put(error)
        elif error is not None or future.result() is PublishOutcome.NO_SUBSCRIBER:
            # Nobody listens, or the connection's queue was full and nothing of it was sent.
            self._queue.put(NobodyThere(batch_id, attempt))

    def note_stop(self, stop: Stop) -> None:
        """Somebody wants no more of a batch. From any thread."""
        self._queue.put(stop)

    def wake(self) -> None:
        """End the wait for messages: a source has something. From any thread."""
        self._queue.put(None)

    def note_failed(self, error: BrokerError) -> None:
        """A connection is of no use any more."""
        self._queue.put(error)

    def arrived(self, timeout_s: float) -> Iterator[Heard]:
        """All that has arrived, waiting at most ``timeout_s`` for the first."""
        try:
            yield self._queue.get(timeout=timeout_s)
            while True:
                yield self._queue.get_nowait()
        except queue.Empty:
            pass
