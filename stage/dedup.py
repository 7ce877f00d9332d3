"""What a stage remembers of batches: stale ones, ones in work, and the last outputs.

Bounded without clocks: a low-watermark for each of the last 64 epochs that a sender passes on, for
each of the last 64 senders; the batches whose output is not acknowledged yet; and the last few
outputs. The key has the attempt in it: a new attempt must pass even when an earlier one was
finished, since its output may have been lost behind us. And it has client and route in it: a sender
is one before us on the route that it names (stage/runner.py sees to that), so whatever it makes up,
be it epochs, watermarks or tensors, is about batches that come by itself.
"""

import threading
from collections import OrderedDict
from typing import NamedTuple

from broker.transport import Delivery
from contract.activation import Header

EPOCHS_REMEMBERED = 64
SENDERS_REMEMBERED = 64


class AttemptKey(NamedTuple):
    """One attempt at one batch; of a language model one message of it, known by its position."""

    client: str
    route: tuple[str, ...]
    epoch: int
    seq: int
    attempt: int
    position: int = 0

    @classmethod
    def of(cls, header: Header, position: int = 0) -> "AttemptKey":
        """The key of a message."""
        return cls(header.client, header.route, *header.batch_id, header.attempt, position)


class Output(NamedTuple):
    """A computed output, ready to be published (again)."""

    topic: str
    payload: bytes


class SeenBatches:
    """Thread-safe: the compute thread begins, the network thread ends. Calls nobody back."""

    def __init__(self, outputs_kept: int) -> None:
        self._outputs_kept = outputs_kept
        self._lock = threading.Lock()
        self._low: OrderedDict[str, OrderedDict[tuple[str, int], int]] = OrderedDict()
        self._in_work: dict[AttemptKey, list[Delivery]] = {}
        self._outputs: OrderedDict[AttemptKey, tuple[Output, ...]] = OrderedDict()

    def is_stale(self, header: Header) -> bool:
        """Note the message's low-watermark; whether the batch lies below the highest one seen.

        A message says of itself that its batch is open: one whose watermark is above its own batch
        is stale, and no watermark to go by. What a first stage gets back from the last one is also
        judged by the client's own.
        """
        epoch, seq = header.batch_id
        key = (header.client, epoch)
        with self._lock:
            epochs = self._low.pop(header.sender, None) or OrderedDict()
            self._low[header.sender] = epochs
            low = epochs.pop(key, 0)
            if header.low <= seq:
                low = max(low, header.low)
            epochs[key] = low
            while len(epochs) > EPOCHS_REMEMBERED:
                epochs.popitem(last=False)
            while len(self._low) > SENDERS_REMEMBERED:
                self._low.popitem(last=False)
            if header.sender != header.client:
                own = self._low.get(header.client)
                low = max(low, own.get(key, 0) if own is not None else 0)
            return seq < max(low, header.low)

    def join(self, key: AttemptKey, delivery: Delivery) -> bool:
        """If this attempt is in work already, let ``delivery`` be acknowledged with it."""
        with self._lock:
            if key not in self._in_work:
                return False
            self._in_work[key].append(delivery)
            return True

    def outputs_of(self, key: AttemptKey) -> tuple[Output, ...] | None:
        """What came of this attempt, if it is one of the last few."""
        with self._lock:
            return self._outputs.get(key)

    def begin(self, key: AttemptKey, delivery: Delivery, *outputs: Output) -> None:
        """Outputs are about to be published; ``delivery`` waits for their acknowledgement."""
        with self._lock:
            self._in_work[key] = [delivery]
            self._outputs[key] = outputs
            self._outputs.move_to_end(key)
            while len(self._outputs) > self._outputs_kept:
                self._outputs.popitem(last=False)

    def forget_outputs(self) -> None:
        """Let the kept outputs go: the shard that made them is unloaded."""
        with self._lock:
            self._outputs.clear()

    def end(self, key: AttemptKey) -> list[Delivery]:
        """The outputs are settled; the deliveries that may now be acknowledged."""
        with self._lock:
            return self._in_work.pop(key, [])

    def in_work(self) -> int:
        """How many outputs wait for the broker's acknowledgement."""
        with self._lock:
            return len(self._in_work)
