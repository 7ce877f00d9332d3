"""Submits batches, keeps a window of them in flight, retries, and yields each result exactly once.

One thread owns all state: the caller's, inside :meth:`Pipeline.run`. Network threads only put what
they hear into `inbox.py`, and `hearing.py` tells it apart. Decisions live in `ledger.py`,
`router.py`, `retry.py` and `feed.py`, which are pure; what outlives the process is written by
`journal.py`.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from broker.drop_watch import describe_drops
from broker.reporter import EventReporter
from broker.self_test import SelfTest, check_packet_size
from broker.split import Elsewhere, SplitConnection
from broker.transport import Callbacks, Connect, ConnectionSettings
from client.batch import Batch, DeathReason, Ended, NothingYet, Tokens
from client.feed import FeedWatch
from client.hearing import Hearing
from client.inbox import Heard, Inbox
from client.intake import Intake
from client.journal import Journal
from client.ledger import Ledger
from client.receiving import Receiver
from client.record import NoRecord, Record, Settling
from client.sending import Reread, Sender
from client.settings import ClientSettings
from client.steady_clock import SteadyClock
from client.telling import Teller
from client.tracer import Tracer
from contract import topics
from contract.errors import DeliveryError, JournalError, PlanError, ShardError
from contract.metrics import Ledger as LedgerCounts
from contract.metrics import PipelineMetrics
from contract.plan import Plan
from contract.status import EventKind

TICK_S = 0.05

log = logging.getLogger(__name__)


class Pipeline:
    """A client of a running pipeline. Use as a context manager, from one thread."""

    def __init__(
        self,
        settings: ClientSettings,
        connect: Connect,
        *,
        elsewhere: Elsewhere | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Connect; :meth:`open` then waits for the plan.

        Args:
            settings: how to feed. With a journal, ``name`` must be its ``client_name``: what the
                broker has kept for that name since the last start counts.
            connect: how to reach the broker.
            elsewhere: how to reach the brokers of a plan's edges; None refuses such plans.
            journal: where every batch is written down; :meth:`close` closes it.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: see :class:`broker.transport.Connect`.
            JournalError: it cannot be read or written.
        """
        self._settings = settings
        self._inbox = Inbox()
        self._watch = FeedWatch(settings.name, settings.window)
        self._journal = journal
        self._ledger = (
            Ledger(secrets.randbits(64)) if journal is None else journal.begin(time.monotonic())
        )
        record: Record = NoRecord() if journal is None else journal
        self._settling = Settling(record)
        self._ended: list[Ended | Tokens] = []
        self._last_tick = time.monotonic()
        self.on_metrics: Callable[[PipelineMetrics], None] = lambda _metrics: None
        clock = SteadyClock()
        self._tracer = Tracer(settings, clock)
        self._self_test = SelfTest(
            settings.name, topics.client_self_topics(settings.cluster, settings.name)
        )
        heard = self._inbox
        callbacks = Callbacks(heard.hear, heard.note_connected, on_failed=heard.note_failed)
        results = topics.result_filter(settings.cluster, settings.name)
        self._connection = SplitConnection(
            connect,
            ConnectionSettings(name=settings.name),
            self._self_test.wrap(self._tracer.wrap(callbacks)),
            elsewhere,
            (results,),
            self._note_dropped,
        )
        for topic_filter in (
            topics.plan_topic(settings.cluster),
            topics.status_filter(settings.cluster),
            results,
            topics.nack_filter(settings.cluster, settings.name),
        ):
            self._connection.subscribe(topic_filter)
        self._tracer.begin(self._connection)
        self._reporter = EventReporter(settings.cluster, settings.name, self._connection)
        self._sender = Sender(
            settings,
            self._connection,
            self._watch,
            self._ledger,
            journal,
            self._inbox,
            self._reporter,
        )
        self._receiver = Receiver(
            settings.name,
            self._watch,
            self._ledger,
            record,
            self._settling,
            self._sender,
            self._reporter,
            clock,
        )
        self._hearing = Hearing(
            self._connection,
            self._inbox,
            self._watch,
            journal,
            self._sender,
            self._receiver,
            self._on_result,
            self._settling,
            self._tracer,
            self._reporter,
        )
        self._teller = Teller(
            settings,
            self._connection,
            self._watch,
            self._ledger,
            self._inbox,
            self._tracer,
            self._reporter,
            self._last_tick,
        )

    @property
    def plan(self) -> Plan:
        """The plan that is being fed.

        Raises:
            PlanError: :meth:`open` has not found one yet.
        """
        return self._watch.feed.plan

    @property
    def tracer(self) -> Tracer:
        """What tells where the time of batches goes."""
        return self._tracer

    @property
    def window(self) -> int:
        """Batches in flight at most."""
        return self._watch.feed.window

    @property
    def rejected(self) -> int:
        """Messages to this client that were not acceptable."""
        return self._hearing.rejected + self._inbox.refused

    def counts(self, finished: bool = False) -> LedgerCounts:
        """The ledger; ``finished`` says that nothing more will come.

        With a journal it counts the batches of all starts: ``submitted`` is how many batches of
        the source are in the journal.
        """
        return self._ledger.counts(finished)

    def open(self) -> Plan:
        """Wait until a plan is published and every stage has a ready device.

        Raises:
            NotAuthorisedError, NameTakenError: see :class:`broker.self_test.SelfTest`.
            MessageTooLargeError: the broker would not take the plan's batches.
            PlanError: no plan within the timeout.
            ShardError: a device cannot load its shard.
            DeliveryError: some stage still has no ready device.
            BrokerUnreachableError: the plan names a broker for an edge that does not answer.
            JournalError: the journal is of another model, or cannot be written.
        """
        deadline = time.monotonic() + self._settings.ready_timeout_s
        self._self_test.run(self._connection.main, timeout_s=self._settings.ready_timeout_s)
        while time.monotonic() < deadline:
            self._handle_next(TICK_S)
            if not self._watch.is_known:
                continue
            check_packet_size(self.plan, self._connection.max_packet_bytes)
            if not self._watch.feed.router.missing_stages():
                self._tracer.ask(time.monotonic())
                return self.plan
            failure = self._watch.failure()
            if failure is not None:
                raise ShardError(failure)
        if not self._watch.is_known:
            raise PlanError(
                f"no plan is published in cluster {self._settings.cluster!r} after "
                f"{self._settings.ready_timeout_s:g} s; run `shardline publish PLAN`"
            )
        raise DeliveryError(
            f"not ready after {self._settings.ready_timeout_s:g} s: {self.waiting_for()}; "
            "start `shardline stage` on these devices and look at their logs"
        )

    def waiting_for(self) -> str:
        """What keeps batches from being sent, in words; empty when nothing does."""
        return self._connection.away() or self._watch.waiting_for()

    def run(self, batches: Iterable[Batch], *, reread: Reread | None = None) -> Iterator[Ended]:
        """Feed batches and yield each one's end, in the order in which they end.

        With a journal, batches that an earlier start has left open are sent first, and an end is
        yielded when it is written down.

        Args:
            batches: new ones.
            reread: how to read a batch again, for one that has ``positions``; None lets the
                journal keep every input.

        Raises:
            TensorMismatchError: a batch does not fit the plan's input; nothing of it was sent.
            MessageTooLargeError: a batch exceeds what the broker accepts.
            NotAuthorisedError: the broker does not let this client publish batches.
            NameTakenError: another process uses our name, and was there first.
            BrokerUnreachableError: a new plan names a broker for an edge that does not answer.
            JournalError: the journal cannot be written; what it has not got was not acknowledged.
            PlanError: the plan is a language model's.
        """
        if self.plan.decoding is not None:
            raise PlanError(f"plan {self.plan.name} is a language model: use `shardline generate`")
        for event in self._events(batches, reread):
            assert not isinstance(event, Tokens)
            yield event

    def _events(
        self, batches: Iterable[Batch | NothingYet], reread: Reread | None
    ) -> Iterator[Ended | Tokens]:
        intake = Intake(batches, self._sender, self._begin)
        self._sender.reread = reread
        self._last_tick = time.monotonic()  # no batch was waiting since the last run
        while True:
            self._settle()
            ended, self._ended = self._ended, []
            handed_at = time.monotonic()
            yield from ended  # before anything new is begun: the caller holds the pace
            if self._watch.feed.plan.decoding is not None:
                # Tokens that have come meanwhile are in the inbox: none of them is late.
                self._last_tick += time.monotonic() - handed_at
                for item in self._inbox.arrived(0):  # a stop comes before what would begin now
                    self._handle(item)
            self._sender.send_those_left_open()
            intake.fill()
            self._settle()
            if self._ended:
                continue  # what nobody wanted any more has ended as it began
            if intake.is_exhausted and self._ledger.is_settled:
                break
            self._handle_next(TICK_S)
            self._tick()
        self._teller.tell(time.monotonic(), self.on_metrics)

    def close(self) -> None:
        """Disconnect. The broker forgets the session, unless a journal has batches to go on with.

        What has come and is not written down yet is written now, or comes again.
        """
        settled = self._ledger.is_settled
        try:
            self._ended += self._settling.settle(time.monotonic(), at_once=True)
        except JournalError as error:
            settled = False
            log.warning("what came last is not in the journal and will come again: %s", error)
        self._connection.close(forget_session=settled or self._journal is None)
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _tick(self) -> None:
        """What time alone brings: deadlines and metrics, a few times a second."""
        now = time.monotonic()
        elapsed = now - self._last_tick
        if elapsed < TICK_S and not self._sender.is_hurried:
            return
        self._last_tick = now
        self._sender.pass_time(elapsed, now)
        for entry in self._sender.out_of_time():
            limit_s = self._settings.batch_timeout_s
            self._receiver.give_up(entry, DeathReason.TIMEOUT, f"no result within {limit_s:g} s")
        self._tracer.ask(now)
        if self._teller.is_due(now):
            self._teller.tell(now, self.on_metrics)

    def _begin(self, batch: Batch) -> None:
        """Send a new batch."""
        self._sender.begin(batch)

    # Receiving

    def _handle_next(self, timeout_s: float) -> None:
        """Take all that has arrived, waiting at most ``timeout_s`` for the first."""
        for item in self._inbox.arrived(self._settling.wait_s(time.monotonic(), timeout_s)):
            self._handle(item)
        self._settle()

    def _settle(self) -> None:
        """Write down what has ended, when that is due; only then acknowledge it and hand it out."""
        self._ended += self._settling.settle(time.monotonic(), at_once=self._ledger.is_settled)

    def _handle(self, item: Heard) -> None:
        self._hearing.hear(item)

    def _on_result(self, payload: bytes, sender: str | None) -> None:
        self._receiver.on_result(payload, sender)

    def _note_dropped(self, where: str, count: int) -> None:
        self._reporter.report(EventKind.MESSAGES_DROPPED, describe_drops(count, where))
