"""Sends batches: as many as the window lets, each by a route of its own, again when that is due.

Its clock runs only while a batch could reach a result at all: an outage, or the time in which no
client ran, brings no deadline nearer.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import numpy as np

from broker.reporter import EventReporter
from broker.split import SplitConnection
from broker.transport import PublishOutcome
from client.batch import Batch
from client.feed import FeedWatch
from client.generation.chunks import count_chunks
from client.generation.deadlines import (
    first_token_deadline_s,
    has_to_wait,
    is_behind_a_prompt,
)
from client.generation.progress import GAP_PATIENCE_S, Generation
from client.generation.transcript import Transcript
from client.inbox import Inbox
from client.journal import Journal
from client.ledger import Entry, Ledger
from client.outgoing import check_input, first_messages, release_message
from client.record import NoRecord, Record
from client.retry import attempt_deadline_s, refusal_delay_s
from client.settings import MAX_PROMPTS_MESSAGES, ClientSettings
from contract.decoder import IDS, SAMPLING, decode_sampling
from contract.status import EventKind

SPAN_IN_WINDOWS = 8
"""How far the newest batch may be ahead of the oldest open one, in windows: it bounds what whoever
puts results in order has to hold back while one batch is late."""

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
        self.releases: list[Future[PublishOutcome]] = []
        """Those that the broker has not acknowledged yet."""

    def can_send(self) -> bool:
        """Whether every broker is there, and a live device for every stage."""
        return self._connection.is_connected and self._watch.feed.router.choose() is not None

    @property
    def is_idle(self) -> bool:
        """Whether no batch is open."""
        return self._ledger.is_settled

    def has_room(self) -> bool:
        """Whether a new batch may be begun; of a language model's, whether one of one row may."""
        window = self._watch.feed.window
        if self._watch.feed.plan.decoding is not None:
            return self.free_rows(1) > 0 and self.can_send()
        return (
            self._ledger.waiting() is None
            and self._ledger.in_flight < window
            and self._ledger.span < SPAN_IN_WINDOWS * window
            and self.can_send()
        )

    def free_rows(self, tokens: int) -> int:
        """How many sequences more, with prompts of so many tokens, may be in flight.

        The stages keep caches for so many. None while such a prompt and those of the others, sent
        anew at once, would fill a queue; alone any may be that :func:`check_input` lets through.
        """
        plan = self._watch.feed.plan
        if plan.decoding is None:
            return 0
        rows, messages = 0, count_chunks(tokens, plan.decoding.chunk_tokens)
        for entry in self._ledger.open_entries():
            rows += entry.batch.images
            if entry.generation is not None:
                length = entry.generation.transcript.length
                messages += count_chunks(length, plan.decoding.chunk_tokens)
        if rows and messages > MAX_PROMPTS_MESSAGES:
            return 0
        return max(0, self._watch.feed.window - rows)

    def fits(self, batch: Batch) -> bool:
        """Whether this batch may be begun where one of one row may."""
        if self._watch.feed.plan.decoding is None or not self._ledger.in_flight:
            return True
        return batch.images <= self.free_rows(batch.tensors[IDS].shape[1])

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
        plan = self._watch.feed.plan
        check_input(plan, batch)
        entry = self._ledger.submit(batch, time.monotonic())
        if plan.decoding is not None:
            sampling = decode_sampling(batch.tensors[SAMPLING])
            ids = batch.tensors[IDS].astype(np.int64)
            entry.generation = Generation(Transcript(ids, sampling))
        self._begin(entry)

    def _begin(self, entry: Entry) -> None:
        if self._settings.batch_timeout_s is not None:
            entry.give_up_at = self.active_s + self._settings.batch_timeout_s
        self._send(entry)

    def _send(self, entry: Entry) -> bool:
        feed = self._watch.feed
        route = feed.router.choose()
        if route is None:
            return False
        entry.deadline_s = self._deadline_s(entry)
        self._ledger.sent(entry, route, self.active_s + entry.deadline_s)
        sent = entry.attempts[entry.attempt]
        if entry.generation is not None:
            entry.generation.begin(entry.attempt)
            sent.sent_tokens = entry.generation.transcript.length
        topic, messages = first_messages(
            entry, feed.plan, self._settings.name, self._settings.cluster, self._ledger.low
        )
        feed.router.begin((entry.batch_id, entry.attempt), route)
        sent.published_at, sent.active_at = time.monotonic(), self.active_s
        entry.message_bytes = sum(map(len, messages))
        note = partial(self._inbox.note_published, entry.batch_id, entry.attempt)
        for message in messages:
            future = entry.sending = self._connection.publish(topic, message)
            future.add_done_callback(note)
        keep_input = self.reread is None or entry.batch.positions is None
        self._record.sent(entry, messages[0], keep_input=keep_input)
        return True

    def _deadline_s(self, entry: Entry) -> float:
        """What the next attempt is given: until its result, or its first token."""
        feed = self._watch.feed
        if entry.generation is not None:
            return first_token_deadline_s(entry, feed)
        return attempt_deadline_s(feed.attempts.p99_s, entry.attempt + 1)

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
            if is_behind_a_prompt(entry, self._ledger.open_entries(), self.active_s):
                entry.retry_at = self.active_s + GAP_PATIENCE_S
                continue
            decoding = feed.plan.decoding
            if decoding is not None and has_to_wait(
                entry, self._ledger.open_entries(), self.active_s, decoding.chunk_tokens
            ):
                continue  # it stays due
            if not self.can_send() or not feed.budget.spend():
                return  # they stay due; the budget earns at least a token a second
            why = entry.why or "its deadline has passed"
            if entry.generation is not None and not entry.why:
                entry.generation.note_late()
            if self._send(entry):
                self._reporter.report(EventKind.BATCH_RETRIED, f"batch {entry.batch_id}: {why}")

    def release(self, entry: Entry) -> None:
        """Let the stages forget the sequences of every attempt that may hold any.

        Also of one that has ended by itself: only the last stage knows of that, and at the others
        its cache would be the more recent one, when room is needed, than a living one's.
        """
        feed, told = self._watch.feed, set()
        for attempt in sorted(entry.attempts, reverse=True):
            key, route = (entry.batch_id, attempt), entry.attempts[attempt].route
            goes_on = feed.router.is_under_way(key)
            feed.router.end(key)
            if goes_on and route not in told:
                name, cluster = self._settings.name, self._settings.cluster
                low = self._ledger.low
                topic, message = release_message(entry, attempt, feed.plan, name, cluster, low)
                self.releases.append(self._connection.publish(topic, message))
            told.add(route)  # a later attempt frees what an earlier one holds on its way
        self.releases = [future for future in self.releases if not future.done()]

    def out_of_time(self) -> list[Entry]:
        """Batches that have had the time that the user gives a batch."""
        return [e for e in self._ledger.open_entries() if e.give_up_at <= self.active_s]

    def send_again_later(self, entry: Entry, why: str) -> None:
        """After a refusal: soon, but not at once, and more slowly each time."""
        in_vain = entry.attempt if entry.generation is None else entry.generation.idle_attempts
        entry.retry_at, entry.why = self.active_s + refusal_delay_s(in_vain), why

    def send_this_now(self, entry: Entry, why: str) -> None:
        """Let this one be due at once."""
        entry.retry_at, entry.why = self.active_s, why
        self.is_hurried = True

    def send_again_now(self, why: str, device: str | None = None) -> None:
        """Let the attempts that may be lost (with ``device``, or all) be due at once."""
        for entry in self._ledger.open_entries():
            if device is None or device in entry.route:
                entry.retry_at, entry.why = self.active_s, why
        self.is_hurried = True
