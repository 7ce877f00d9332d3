"""Sends batches: as many as the window lets, each by a route of its own, again when that is due.

Its clock runs only while a batch could reach a result at all: an outage, or the time in which no
client ran, brings no deadline nearer.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from broker.reporter import EventReporter
from broker.split import SplitConnection
from client.batch import Batch
from client.feed import FeedWatch
from client.inbox import Inbox
from client.journal import Journal
from client.ledger import Entry, Ledger
from client.outgoing import check_input, first_message
from client.record import NoRecord, Record
from client.retry import attempt_deadline_s, refusal_delay_s
from client.settings import ClientSettings
from contract.status import EventKind

SPAN_IN_WINDOWS = 8
"""How far the newest batch may be ahead of the oldest open one, in windows: it bounds what whoever
puts results in order has to hold back while one batch is late."""

ACTIVE_STEP_S = 0.05
"""How coarse the clock of deadlines is, at most: it is set forward a few times a second."""

Reread = Callable[[Batch], Batch]
"""Reads the tensors of a batch from its source again, by its ``positions``."""


class Sender:
    """What of a pipeline sends. Owned by the pipeline's thread."""

    def __init__(
        self,
        settings: ClientSettings,
        connection: SplitConnection,
        watch: FeedWatch,
        ledger: Ledger,
        journal: Journal | None,
        inbox: Inbox,
        reporter: EventReporter,
    ) -> None:
        self._settings, self._connection, self._watch = settings, connection, watch
        self._ledger, self._inbox, self._reporter = ledger, inbox, reporter
        self._journal = journal
        self._record: Record = NoRecord() if journal is None else journal
        self.reread: Reread | None = None
        self.active_s = 0.0
        """The clock of all deadlines."""
        self.is_hurried = False
        """Whether something is due before the next tick."""

    def can_send(self) -> bool:
        """Whether every broker is there, and a live device for every stage."""
        return self._connection.is_connected and self._watch.feed.router.choose() is not None

    def has_room(self) -> bool:
        """Whether a new batch may be begun."""
        window = self._watch.feed.window
        return (
            self._ledger.waiting() is None
            and self._ledger.in_flight < window
            and self._ledger.span < SPAN_IN_WINDOWS * window
            and self.can_send()
        )

    def send_those_left_open(self) -> None:
        """Send what an earlier start has left, as far as the window lets.

        Raises:
            TensorMismatchError, DeliveryError: see :func:`client.outgoing.check_input`.
            JournalError: an input cannot be read.
        """
        while self._ledger.in_flight < self._watch.feed.window and self.can_send():
            entry = self._ledger.waiting()
            if entry is None:
                return
            batch = self._read_again(entry)
            check_input(self._watch.feed.plan, batch)
            self._ledger.admit(entry, batch, time.monotonic())
            self._begin(entry)

    def _read_again(self, entry: Entry) -> Batch:
        if self.reread is not None and entry.batch.positions is not None:
            return self.reread(entry.batch)
        assert self._journal is not None  # nothing waits without one
        return replace(entry.batch, tensors=self._journal.read_input(entry))

    def begin(self, batch: Batch) -> None:
        """Take a new batch in and send it.

        Raises:
            TensorMismatchError, DeliveryError: see :func:`client.outgoing.check_input`.
            MessageTooLargeError: it exceeds what the broker accepts.
        """
        check_input(self._watch.feed.plan, batch)
        self._begin(self._ledger.submit(batch, time.monotonic()))

    def _begin(self, entry: Entry) -> None:
        if self._settings.batch_timeout_s is not None:
            entry.give_up_at = self.active_s + self._settings.batch_timeout_s
        self._send(entry)

    def _send(self, entry: Entry) -> bool:
        feed = self._watch.feed
        route = feed.router.choose()
        if route is None:
            return False
        entry.deadline_s = attempt_deadline_s(feed.attempts.p99_s, entry.attempt + 1)
        self._ledger.sent(entry, route, self.active_s + entry.deadline_s)
        topic, message = first_message(
            entry, feed.plan, self._settings.name, self._settings.cluster, self._ledger.low
        )
        feed.router.begin((entry.batch_id, entry.attempt), route)
        entry.published_at[entry.attempt] = time.monotonic()
        entry.active_at[entry.attempt] = self.active_s
        future = entry.sending = self._connection.publish(topic, message)
        future.add_done_callback(partial(self._inbox.note_published, entry.batch_id, entry.attempt))
        keep_input = self.reread is None or entry.batch.positions is None
        self._record.sent(entry, message, keep_input=keep_input)
        return True

    def pass_time(self, elapsed_s: float, now: float) -> None:
        """Let time pass: send again what is due by it, as far as the budget of retries lets."""
        self.is_hurried = False
        feed = self._watch.feed
        if self._connection.is_connected and not feed.router.missing_stages():
            self.active_s += elapsed_s
        feed.budget.earn(now)
        for entry in self._ledger.due(self.active_s):
            if entry.sending is not None and not entry.sending.done():
                if not entry.why:  # a copy would only wait at the broker's door behind this one
                    entry.retry_at = self.active_s + entry.deadline_s
                continue
            if not self.can_send() or not feed.budget.spend():
                return  # they stay due; the budget earns at least a token a second
            why = entry.why or "its deadline has passed"
            if self._send(entry):
                self._reporter.report(EventKind.BATCH_RETRIED, f"batch {entry.batch_id}: {why}")

    def attempt_s(self, entry: Entry, attempt: int, now: float) -> float:
        """What an attempt of this process has taken until ``now`` (monotonic), in seconds.

        Outages do not count, nor the time in which whoever takes the results was busy.
        """
        active_s = self.active_s - entry.active_at[attempt] + ACTIVE_STEP_S
        return min(now - entry.published_at[attempt], active_s)

    def out_of_time(self) -> list[Entry]:
        """Batches that have had the time that the user gives a batch."""
        return [e for e in self._ledger.open_entries() if e.give_up_at <= self.active_s]

    def send_again_later(self, entry: Entry, why: str) -> None:
        """After a refusal: soon, but not at once, and more slowly each time."""
        entry.retry_at, entry.why = self.active_s + refusal_delay_s(entry.attempt), why

    def send_again_now(self, why: str, device: str | None = None) -> None:
        """Let the attempts that may be lost (with ``device``, or all) be due at once."""
        for entry in self._ledger.open_entries():
            if device is None or device in entry.route:
                entry.retry_at, entry.why = self.active_s, why
        self.is_hurried = True
