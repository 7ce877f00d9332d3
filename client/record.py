"""What of a run outlives the process: nothing, or a journal. And what waits for it to be written.

A result is acknowledged to the broker, and handed to the caller, only after the commit that holds
it: until then the broker keeps it. Commits are grouped, since each costs a write to the disk.
"""

from typing import Protocol

from broker.transport import Delivery
from client.batch import DeathReason, Ended, Tokens
from client.ledger import Entry


class Record(Protocol):
    """Where a pipeline writes down what becomes of its batches; nothing counts until commit."""

    @property
    def commit_interval_s(self) -> float:
        """How long what was noted may wait for its commit; 0 where a commit costs nothing."""
        ...

    @property
    def is_dirty(self) -> bool:
        """Whether something was noted since the last commit."""
        ...

    def sent(self, entry: Entry, message: bytes, *, keep_input: bool) -> None:
        """Note that an attempt is on its way as ``message``."""
        ...

    def done(self, entry: Entry, message: bytes, latency_ms: float) -> None:
        """Note a batch's result, as its message came."""
        ...

    def dead(self, entry: Entry, reason: DeathReason, detail: str) -> None:
        """Note that a batch was given up."""
        ...

    def commit(self) -> None:
        """Make all that was noted lasting, at once or not at all.

        Raises:
            JournalError: it cannot be written.
        """
        ...


class NoRecord:
    """A :class:`Record` that keeps nothing, and costs nothing."""

    commit_interval_s = 0.0
    is_dirty = False

    def sent(self, entry: Entry, message: bytes, *, keep_input: bool) -> None:
        """See :class:`Record`."""

    def done(self, entry: Entry, message: bytes, latency_ms: float) -> None:
        """See :class:`Record`."""

    def dead(self, entry: Entry, reason: DeathReason, detail: str) -> None:
        """See :class:`Record`."""

    def commit(self) -> None:
        """See :class:`Record`."""


MAX_WAITING_DELIVERIES = 32
"""Half of a client's receive maximum: the broker goes on sending while a commit is due."""


SENT_INTERVALS = 10
"""Commit intervals that attempts without any end may wait: nobody waits for them, and a batch that
was sent and is not written down is only read and sent again."""


class Settling:
    """Deliveries and ends that wait for the commit which holds them."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._deliveries: list[Delivery] = []
        self._ended: list[Ended | Tokens] = []
        self._since: float | None = None

    def hold(self, delivery: Delivery) -> None:
        """Acknowledge this one after the next commit."""
        self._deliveries.append(delivery)

    def end(self, ended: Ended | Tokens) -> None:
        """Hand this end out after the next commit."""
        self._ended.append(ended)

    def wait_s(self, now: float, at_most: float) -> float:
        """How long one may wait for messages before :meth:`settle` is due."""
        if self._since is None:
            return at_most
        return min(at_most, max(0.0, self._since + self._interval_s() - now))

    def _interval_s(self) -> float:
        return self._record.commit_interval_s * (1 if self._ended else SENT_INTERVALS)

    def settle(self, now: float, *, at_once: bool = False) -> list[Ended | Tokens]:
        """Commit if that is due, then acknowledge; the ends that count from now on.

        Raises:
            JournalError: it could not be written: nothing was acknowledged, nothing has ended.
        """
        if self._record.is_dirty:
            if self._since is None:
                self._since = now
            is_due = now - self._since >= self._interval_s()
            if not (at_once or is_due or len(self._deliveries) >= MAX_WAITING_DELIVERIES):
                return []
            self._record.commit()
        self._since = None
        deliveries, self._deliveries = self._deliveries, []
        for delivery in deliveries:
            delivery.ack()
        ended, self._ended = self._ended, []
        return ended
