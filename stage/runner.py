"""The loop that everyone reads first: receive, check, run, check, publish, acknowledge.

An input is acknowledged only after the broker has acknowledged its output, so a crash anywhere in
between redelivers it. What cannot be accepted is refused with a reason to the client (a nack), or,
when not even the client's name can be read, counted and reported; nothing is dropped silently, and
nothing that arrives can end the loop. Specification: docs/adr/0005 and docs/wire-format.md.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

from broker.transport import Connection, Delivery, PublishOutcome
from contract import topics
from contract.activation import Activation, Header, decode
from contract.errors import BrokerError, EngineError, MessageTooLargeError, WireFormatError
from contract.nack import Nack, NackReason
from contract.status import EventKind
from stage.caches import CacheUsage
from stage.counters import StageCounters
from stage.crash_marker import Batch, CrashMarker
from stage.decoder_work import DecoderWork
from stage.dedup import AttemptKey, Output, SeenBatches
from stage.image_work import ImageWork
from stage.settling import when_all_are_settled
from stage.work import LoadedStage as LoadedStage  # who loads a runner makes these
from stage.work import RefusedError, Work

Report = Callable[[EventKind, str], None]
MAX_DEATHS = 2
"""A batch in work at so many deaths of this device is not tried again: one may be bad luck."""


class StageRunner:
    """Runs the batches of one device. :meth:`process` is called by the compute thread alone."""

    def __init__(
        self,
        device: str,
        cluster: str,
        connection: Connection,
        counters: StageCounters,
        report: Report,
        receive_maximum: int,
        marker: CrashMarker | None = None,
    ) -> None:
        """``marker``: remembers batches that killed this device; None remembers nothing."""
        self._device, self._cluster = device, cluster
        self._connection, self._counters, self._report = connection, counters, report
        self._seen = SeenBatches(outputs_kept=receive_maximum)
        self._marker = marker or CrashMarker(None)
        self._loaded: LoadedStage | None = None
        self._work: Work | None = None

    @property
    def loaded(self) -> LoadedStage | None:
        """The shard in memory, if any."""
        return self._loaded

    def load(self, loaded: LoadedStage | None) -> None:
        """Serve this stage from now on, or (``None``) refuse everything as not ready.

        The same engine as before keeps its caches: the plan was only placed anew.
        """
        self._loaded, before = loaded, self._work
        if loaded is None:
            self._work = None
            self._seen.forget_outputs()
        elif loaded.spec.cache is None:
            self._work = ImageWork(self._device, self._cluster, loaded)
        else:
            earlier = before if isinstance(before, DecoderWork) else None
            self._work = DecoderWork(self._device, self._cluster, loaded, earlier)

    @property
    def cache_usage(self) -> CacheUsage | None:
        """Of a language model's stage. Any thread may ask."""
        work = self._work
        return work.usage if isinstance(work, DecoderWork) else None

    def close(self) -> None:
        """No batch comes any more."""
        self._marker.close()

    def outputs_waiting(self) -> int:
        """How many outputs the broker has not acknowledged yet."""
        return self._seen.in_work()

    def process(self, delivery: Delivery, received_us: int) -> None:
        """Take one input to its end. Never raises for anything that the message holds."""
        self._counters.add(bytes_in=len(delivery.payload))
        try:
            address = topics.parse_topic(delivery.topic)
            activation = decode(delivery.payload, self._max_bytes())
        except WireFormatError as error:
            self._reject(delivery, str(error))
            return
        header = activation.header
        if address.sender != header.sender:
            # A forgery: whom it names has nothing to do with it, and is not told.
            detail = f"expected it from {header.sender}, got it from {address.sender}"
            self._reject(delivery, detail)
            return
        refusal = self._refusal(address, header)
        if refusal is not None:
            self._refuse(header, *refusal, [delivery])
            return
        work = self._work
        assert work is not None  # else it was refused
        try:
            key = work.key_of(header)
        except WireFormatError as error:
            self._refuse(header, NackReason.INVALID, str(error), [delivery])
            return
        if self._seen.join(key, delivery):
            self._counters.add(duplicates=1)
            return
        known = self._seen.outputs_of(key)
        if known is not None:
            self._counters.add(duplicates=1)
            self._publish(key, header, delivery, known)
            return
        deaths = self._marker.deaths(Batch.of(header))
        if deaths >= MAX_DEATHS:
            detail = f"{self._device} has died {deaths} times while it computed this batch"
            self._refuse(header, NackReason.POISON, detail, [delivery])
            return
        self._run(key, activation, delivery, received_us)

    def _max_bytes(self) -> int | None:
        return None if self._loaded is None else self._loaded.max_message_bytes

    def _refusal(self, address: topics.Topic, header: Header) -> tuple[NackReason, str] | None:
        """Why this message cannot be run here, judged by its header and topic alone."""
        loaded = self._loaded
        if loaded is None:
            return NackReason.NOT_READY, f"{self._device} has no shard in memory"
        plan_id, index = loaded.plan.plan_id, loaded.spec.stage_index
        if header.plan_id != plan_id or address.plan_id != plan_id:
            return NackReason.PLAN_MISMATCH, (
                f"expected plan {plan_id}, got {header.plan_id:.40} on topic of {address.plan_id}"
            )
        # Tokens come back to the first stage by the edge that results travel by: no device may
        # write to the topics of the first one (deploy/acl.py).
        comes_back = not index and ("returned", 1) in header.scalars
        edge = loaded.plan.num_stages if comes_back else index
        if header.stage_index != index or address.stage_index != edge:
            return NackReason.MISROUTED, f"expected stage {index}, got {header.stage_index}"
        if len(header.route) != loaded.plan.num_stages or header.route[index] != self._device:
            return NackReason.MISROUTED, f"route {header.route!r:.200} does not lead through here"
        if (index or comes_back) and address.sender not in loaded.feeders:
            before = (index - 1) % loaded.plan.num_stages
            return NackReason.MISROUTED, f"{address.sender} does not serve stage {before}"
        codec = loaded.plan.codec_of_edge(index)
        if header.codec != codec:
            return (
                NackReason.INVALID,
                f"expected the inputs of stage {index} in codec {codec}, got {header.codec}",
            )
        if self._seen.is_stale(header):
            return NackReason.STALE, f"batch {header.batch_id} is below the low-watermark"
        return None

    def _run(
        self, key: AttemptKey, activation: Activation, delivery: Delivery, received_us: int
    ) -> None:
        header, work = activation.header, self._work
        assert work is not None
        batch, position = Batch.of(header), max(0, key.position)
        self._marker.begin(batch, position)
        was_computed = False  # a copy was not, nor what is refused before
        try:
            done = work.run(activation, received_us)
            was_computed = bool(done.counts.get("batches"))
        except WireFormatError as error:
            self._refuse(header, NackReason.INVALID, str(error), [delivery])
            return
        except EngineError as error:
            was_computed = True
            self._refuse(header, NackReason.ENGINE_FAILED, str(error), [delivery])
            return
        except RefusedError as error:
            self._refuse(header, error.reason, str(error), [delivery])
            return
        finally:
            self._marker.end(batch, position, is_survived=was_computed)
        self._counters.add(**done.counts)
        self._publish(key, header, delivery, done.outputs)

    def _publish(
        self, key: AttemptKey, header: Header, delivery: Delivery, outputs: Iterable[Output]
    ) -> None:
        work = self._work
        if work is not None and work.answers_again:
            outputs = tuple(outputs)
            self._seen.begin(key, delivery, *outputs)
        else:
            self._seen.begin(key, delivery)
        published_at = time.perf_counter()
        sent, futures = list[Output](), []
        for output in outputs:
            sent.append(output)
            try:
                futures.append(self._connection.publish(output.topic, output.payload))
            except MessageTooLargeError as error:
                self._refuse(header, NackReason.PUBLISH_REFUSED, str(error), self._seen.end(key))
                return
            self._counters.add(bytes_out=len(output.payload))
        when_all_are_settled(
            futures, partial(self._published, key, header, published_at, sent, futures)
        )

    # From here on: called on the network thread, so nothing may wait.

    def _published(
        self,
        key: AttemptKey,
        header: Header,
        published_at: float,
        outputs: Sequence[Output],
        futures: Sequence[Future[PublishOutcome]],
    ) -> None:
        if outputs:
            self._counters.add(published=1, publish_s=time.perf_counter() - published_at)
        deliveries = self._seen.end(key)
        for output, future in zip(outputs, futures, strict=True):
            error = future.exception()
            if error is not None:
                self._refuse(header, NackReason.PUBLISH_REFUSED, str(error), deliveries)
                return
            if future.result() is PublishOutcome.NO_SUBSCRIBER:
                work = self._work
                if work is not None:
                    work.undelivered(key, output)
                detail = f"nobody listens as {topics.parse_topic(output.topic).to}"
                self._refuse(header, NackReason.NO_SUBSCRIBER, detail, deliveries)
                return
        _acknowledge(deliveries)

    def _reject(self, delivery: Delivery, detail: str) -> None:
        """A message that names no client we could answer: count, report, let the broker forget."""
        self._counters.add(rejected=1)
        self._report(EventKind.MESSAGE_REJECTED, f"{delivery.topic}: {detail}")
        delivery.ack()

    def _refuse(
        self, header: Header, reason: NackReason, detail: str, deliveries: list[Delivery]
    ) -> None:
        """Tell the client why; the input is acknowledged once the refusal is safe at the broker."""
        self._counters.add(nacks=1)
        if reason is not NackReason.STALE:
            self._report(EventKind.MESSAGE_REJECTED, f"batch {header.batch_id}: {reason}: {detail}")
        nack = Nack(
            plan_id=header.plan_id,
            epoch=f"{header.batch_id.epoch:016x}",
            seq=header.batch_id.seq,
            attempt=header.attempt,
            stage_index=header.stage_index,
            device=self._device,
            route=header.route,
            reason=reason,
            detail=detail[:2000],
        )
        topic = topics.nack_topic(self._cluster, header.client, self._device)
        try:
            future = self._connection.publish(topic, nack.model_dump_json().encode())
        except BrokerError:
            _acknowledge(deliveries)  # the client's deadline covers what it cannot be told
            return
        future.add_done_callback(lambda _done: _acknowledge(deliveries))


def _acknowledge(deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        delivery.ack()
