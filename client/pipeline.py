"""Submits batches, keeps a window of them in flight, retries, and yields each result exactly once.

One thread owns all state: the caller's, inside :meth:`Pipeline.run`. Network threads only put what
they hear into `inbox.py`. Decisions live in `ledger.py`, `router.py`, `retry.py` and `feed.py`,
which are pure.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from broker.reporter import EventReporter
from broker.split import Elsewhere, SplitConnection
from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from client.acceptance import accept_result, check_nack
from client.batch import Batch, BatchResult, DeadBatch, DeathReason, Ended, NobodyThere
from client.feed import FeedWatch
from client.inbox import Heard, Inbox
from client.ledger import Entry, Ledger
from client.retry import MAX_REFUSALS, attempt_deadline_s, refusal_delay_s
from client.settings import ClientSettings
from contract import topics
from contract.activation import Header, encode
from contract.errors import DeliveryError, PlanError, ShardError, WireFormatError
from contract.metrics import Ledger as LedgerCounts
from contract.metrics import PipelineMetrics
from contract.nack import POISONOUS, Nack, parse_nack
from contract.plan import MAX_PLAN_BYTES, Plan, parse_plan
from contract.status import DeviceStatus, EventKind, parse_status
from contract.tensor_spec import check_tensors

TICK_S = 0.05
METRICS_INTERVAL_S = 1.0
SPAN_IN_WINDOWS = 8
"""How far the newest batch may be ahead of the oldest open one, in windows: it bounds what whoever
puts results in order has to hold back while one batch is late."""

log = logging.getLogger(__name__)


class Pipeline:
    """A client of a running pipeline. Use as a context manager, from one thread."""

    def __init__(
        self, settings: ClientSettings, connect: Connect, *, elsewhere: Elsewhere | None = None
    ) -> None:
        """Connect; :meth:`open` then waits for the plan.

        ``elsewhere``: how to reach the brokers of a plan's edges; None refuses such plans.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: see :class:`broker.transport.Connect`.
        """
        self._settings = settings
        self._inbox = Inbox()
        self._watch = FeedWatch(settings.name, settings.window)
        self._ledger = Ledger(secrets.randbits(64))
        self._ended: list[Ended] = []
        self._rejected = self._told_refused = 0
        self._active_s = 0.0
        self._hurry = False  # something is due before the next tick
        self._last_tick = self._last_metrics = time.monotonic()
        self.on_metrics: Callable[[PipelineMetrics], None] = lambda _metrics: None
        results = topics.result_filter(settings.cluster, settings.name)
        self._connection = SplitConnection(
            connect,
            ConnectionSettings(name=settings.name),
            Callbacks(on_delivery=self._inbox.hear, on_connected=self._inbox.note_connected),
            elsewhere,
            (results,),
        )
        for topic_filter in (
            topics.plan_topic(settings.cluster),
            topics.status_filter(settings.cluster),
            results,
            topics.nack_filter(settings.cluster, settings.name),
        ):
            self._connection.subscribe(topic_filter)
        self._reporter = EventReporter(settings.cluster, settings.name, self._connection)

    @property
    def plan(self) -> Plan:
        """The plan that is being fed.

        Raises:
            PlanError: :meth:`open` has not found one yet.
        """
        return self._watch.feed.plan

    @property
    def window(self) -> int:
        """Batches in flight at most."""
        return self._watch.feed.window

    @property
    def rejected(self) -> int:
        """Messages to this client that were not acceptable."""
        return self._rejected + self._inbox.refused

    def counts(self, finished: bool = False) -> LedgerCounts:
        """The ledger; ``finished`` says that nothing more will come."""
        return self._ledger.counts(finished)

    def open(self) -> Plan:
        """Wait until a plan is published and every stage has a ready device.

        Raises:
            PlanError: no plan within the timeout.
            ShardError: a device cannot load its shard.
            DeliveryError: some stage still has no ready device.
            BrokerUnreachableError: the plan names a broker for an edge that does not answer.
        """
        deadline = time.monotonic() + self._settings.ready_timeout_s
        while time.monotonic() < deadline:
            self._handle_next(timeout_s=TICK_S)
            if not self._watch.is_known:
                continue
            if not self._watch.feed.router.missing_stages():
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

    def run(self, batches: Iterable[Batch]) -> Iterator[Ended]:
        """Feed batches and yield each one's end, in the order in which they end.

        Raises:
            TensorMismatchError: a batch does not fit the plan's input; nothing of it was sent.
            MessageTooLargeError: a batch exceeds what the broker accepts.
            NotAuthorisedError: the broker does not let this client publish batches.
            BrokerUnreachableError: a new plan names a broker for an edge that does not answer.
        """
        source = iter(batches)
        exhausted = False
        self._last_tick = time.monotonic()  # no batch was waiting since the last run
        while True:
            while not exhausted and self._has_room():
                batch = next(source, None)
                if batch is None:
                    exhausted = True
                    break
                self._submit(batch)
            if exhausted and not self._ledger.in_flight:
                break
            self._handle_next(timeout_s=TICK_S)
            self._tick()
            ended, self._ended = self._ended, []
            yield from ended
        self._publish_metrics(time.monotonic())

    def close(self) -> None:
        """Disconnect; the broker forgets the session."""
        self._connection.close(forget_session=True)

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # Sending

    def _has_room(self) -> bool:
        return (
            self._ledger.in_flight < self.window
            and self._ledger.span < SPAN_IN_WINDOWS * self.window
            and self._can_send()
        )

    def _can_send(self) -> bool:
        return self._connection.is_connected and self._watch.feed.router.choose() is not None

    def _submit(self, batch: Batch) -> None:
        specs = self.plan.stages[0].inputs
        check_tensors(f"input of plan {self.plan.name}", specs, batch.tensors)
        if batch.images > self.plan.batch_size:
            raise DeliveryError(
                f"a batch of {batch.images} images: plan {self.plan.name} was made for at most "
                f"{self.plan.batch_size}; use --batch {self.plan.batch_size} or plan it again"
            )
        self._send(self._ledger.submit(batch, time.monotonic()))

    def _send(self, entry: Entry) -> bool:
        route = self._watch.feed.router.choose()
        if route is None:
            return False
        self._ledger.sent(
            entry,
            route,
            self._active_s + attempt_deadline_s(self._watch.feed.meter.p99_s, entry.attempt + 1),
        )
        header = Header(
            plan_id=self.plan.plan_id,
            batch_id=entry.batch_id,
            attempt=entry.attempt,
            low=self._ledger.low,
            stage_index=0,
            route=route,
            client=self._settings.name,
            sent_us=time.time_ns() // 1000,
        )
        topic = topics.input_topic(
            self._settings.cluster, route[0], self.plan.plan_id, 0, self._settings.name
        )
        self._watch.feed.router.begin((entry.batch_id, entry.attempt), route)
        future = self._connection.publish(topic, encode(header, entry.batch.tensors))
        future.add_done_callback(partial(self._inbox.note_published, entry.batch_id, entry.attempt))
        return True

    def _retry(self, entry: Entry, why: str) -> None:
        if not self._can_send() or not self._watch.feed.budget.spend():
            return  # it stays due; the budget earns at least a token a second
        if self._send(entry):
            self._reporter.report(EventKind.BATCH_RETRIED, f"batch {entry.batch_id}: {why}")

    def _tick(self) -> None:
        """What time alone brings: deadlines and metrics, a few times a second."""
        now = time.monotonic()
        elapsed = now - self._last_tick
        if elapsed < TICK_S and not self._hurry:
            return
        self._last_tick, self._hurry = now, False
        if self._connection.is_connected and not self._watch.feed.router.missing_stages():
            self._active_s += elapsed
        self._watch.feed.budget.earn(now)
        for entry in self._ledger.due(self._active_s):
            self._retry(entry, entry.why or "its deadline has passed")
        limit = self._settings.batch_timeout_s
        if limit is not None:
            for entry in self._ledger.open_entries():
                if now - entry.submitted_at > limit:
                    self._kill(entry, DeathReason.TIMEOUT, f"no result within {limit:g} s")
        if now - self._last_metrics >= METRICS_INTERVAL_S:
            self._publish_metrics(now)

    def _kill(self, entry: Entry, reason: DeathReason, detail: str) -> None:
        self._ledger.kill(entry, reason)
        self._ended.append(DeadBatch(entry.batch_id, entry.batch, reason, detail))
        self._reporter.report(EventKind.BATCH_DEAD, f"batch {entry.batch_id}: {reason}: {detail}")

    # Receiving

    def _handle_next(self, timeout_s: float) -> None:
        """Take all that has arrived, waiting at most ``timeout_s`` for the first."""
        for item in self._inbox.arrived(timeout_s):
            self._handle(item)

    def _handle(self, item: Heard) -> None:
        if isinstance(item, bool):
            self._on_connected(session_present=item)
            return
        if isinstance(item, BaseException):
            raise item  # a broker does not let us feed this pipeline: retrying cannot help
        if isinstance(item, NobodyThere):
            self._on_nobody_there(item)
            return
        try:
            topic = topics.parse_topic(item.topic)
            if topic.kind in ("result", "nack") and not self._watch.is_known:
                raise WireFormatError("left over from an earlier run of this name")
            if item.retained and topic.kind in ("result", "nack"):
                raise WireFormatError("retained, which no device of ours does")
            if topic.kind == "result":
                self._on_result(item.payload, topic.sender)
            elif topic.kind == "nack":
                self._on_nack(parse_nack(item.payload, topic.sender))
            elif topic.kind == "status":
                self._on_status(parse_status(item.payload, topic.sender))
            elif topic.kind == "plan":
                self._on_plan(item)
        except WireFormatError as error:
            self._rejected += 1
            self._reporter.report(EventKind.MESSAGE_REJECTED, f"{item.topic}: {error}")
        item.ack()

    def _on_result(self, payload: bytes, sender: str | None) -> None:
        header, outputs = accept_result(
            payload, sender, self._settings.name, self._watch.feed, self._ledger
        )
        self._watch.feed.router.end((header.batch_id, header.attempt))
        entry = self._ledger.deliver(header.batch_id)
        if entry is None:
            return
        now = time.monotonic()
        self._watch.feed.budget.earn(now, delivered=1)
        result = BatchResult(
            batch_id=header.batch_id,
            batch=entry.batch,
            outputs=outputs,
            latency_ms=(now - entry.submitted_at) * 1000,
            attempt=header.attempt,
            hops=header.trace,
            route=header.route,
        )
        self._watch.feed.meter.add(result)
        self._ended.append(result)

    def _on_nack(self, nack: Nack) -> None:
        check_nack(nack, self._ledger)
        entry = self._ledger.find(nack.batch_id)
        self._watch.feed.router.end((nack.batch_id, nack.attempt))
        if entry is None or nack.attempt != entry.attempt:
            return  # a late refusal of an attempt that another has replaced
        detail = f"{nack.device} refused it ({nack.reason}): {nack.detail}"
        if nack.reason in POISONOUS:
            entry.refusals.append(detail)
            if len(entry.refusals) >= MAX_REFUSALS:
                self._kill(entry, DeathReason.POISON, detail)
                return
        entry.retry_at = self._active_s + refusal_delay_s(entry.attempt)
        entry.why = detail

    def _on_nobody_there(self, what: "NobodyThere") -> None:
        """A hint that the first device is gone; its will may still be on the way."""
        entry = self._ledger.find(what.batch_id)
        if entry is not None and entry.attempt == what.attempt:
            self._watch.feed.router.end((what.batch_id, what.attempt))
            entry.retry_at = self._active_s + refusal_delay_s(entry.attempt)
            entry.why = f"nobody listens as {entry.route[0]}"

    def _on_status(self, status: DeviceStatus) -> None:
        if self._watch.take_status(status):
            self._reporter.report(EventKind.DEVICE_LOST, f"device {status.device}: {status.state}")
            self._resend(f"{status.device} was lost", status.device)

    def _on_connected(self, session_present: bool) -> None:
        if self._watch.is_known and not session_present:
            log.warning("the broker forgot our session: sending all open batches again")
            self._resend("the broker forgot our session")

    def _resend(self, why: str, device: str | None = None) -> None:
        """Let the attempts that may be lost (with ``device``, or all) be due at once."""
        for entry in self._ledger.open_entries():
            if device is None or device in entry.route:
                entry.retry_at, entry.why = self._active_s, why
        self._hurry = True

    def _on_plan(self, delivery: Delivery) -> None:
        if not delivery.payload:
            return  # retired; devices will say that they are idle
        try:
            plan = parse_plan(delivery.payload, delivery.topic)
        except PlanError as error:
            raise WireFormatError(str(error)) from error  # what was published is no plan at all
        if not plan.placement:
            raise WireFormatError("a plan without devices; hand it out with `shardline publish`")
        # All of them, not our own two: we pause while one is away, and hear which one forgot us.
        self._inbox.max_bytes = max(MAX_PLAN_BYTES, plan.max_message_bytes())
        moved = self._connection.use(plan.edge_addresses(), plan.num_stages)
        if self._watch.take_plan(plan, time.monotonic()):
            self._reporter.report(EventKind.PLAN_CHANGED, f"now plan {plan.plan_id} ({plan.name})")
            self._resend("the plan changed")
        elif moved:
            self._resend("an edge has another broker")

    # Telling

    def _publish_metrics(self, now: float) -> None:
        self._last_metrics = now
        if self._inbox.refused > self._told_refused:
            count, self._told_refused = self._inbox.refused, self._inbox.refused
            detail = f"{count} messages at QoS 0, or too large, since the start"
            self._reporter.report(EventKind.MESSAGE_REJECTED, detail)
        self._reporter.flush()
        metrics = self._watch.feed.meter.measure(now, self._ledger.counts())
        self.on_metrics(metrics)
        topic = topics.pipeline_metrics_topic(self._settings.cluster, self._settings.name)
        self._connection.publish(topic, metrics.model_dump_json().encode(), qos=0)
