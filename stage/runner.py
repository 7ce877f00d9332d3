"""The loop that everyone reads first: receive, check, run, check, publish, acknowledge.

An input is acknowledged only after the broker has acknowledged its output, so a crash anywhere in
between redelivers it. What cannot be accepted is refused with a reason to the client (a nack), or,
when not even the client's name can be read, counted and reported; nothing is dropped silently, and
nothing that arrives can end the loop. Specification: docs/adr/0005 and docs/wire-format.md.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from broker.transport import Connection, Delivery, PublishOutcome
from contract import topics
from contract.activation import Activation, Header, Hop, decode, encode
from contract.codec import compress, expand, wire_specs
from contract.errors import (
    BrokerError,
    EngineError,
    MessageTooLargeError,
    TensorMismatchError,
    WireFormatError,
)
from contract.nack import Nack, NackReason
from contract.plan import Plan, StageSpec
from contract.status import EventKind
from contract.tensor_spec import Tensors, check_tensors
from stage.counters import StageCounters
from stage.crash_marker import Batch, CrashMarker
from stage.dedup import AttemptKey, Output, SeenBatches
from stage.engine import Engine

Report = Callable[[EventKind, str], None]
MAX_DEATHS = 2
"""A batch in work at so many deaths of this device is not tried again: one may be bad luck."""


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage of a plan with its shard in memory, its weights prepacked if the plan says so.

    ``earlier_feeders``: devices of the stage before, as this plan was placed earlier. Batches of
    theirs may still be on their way.
    """

    plan: Plan
    spec: StageSpec
    engine: Engine
    max_message_bytes: int
    prepack: bool = True
    earlier_feeders: frozenset[str] = frozenset()

    @property
    def feeders(self) -> frozenset[str]:
        """Devices that inputs come from; none for the first stage, which clients feed."""
        index = self.spec.stage_index
        before = self.plan.placement[index - 1 : index] if index else ()
        now = frozenset(replica.device for place in before for replica in place.replicas)
        return self.earlier_feeders | now

    @property
    def is_last(self) -> bool:
        """Whether the output is the result."""
        return self.spec.stage_index + 1 == self.plan.num_stages


def now_us() -> int:
    """This device's Unix time in microseconds, for traces only: no decision rests on it."""
    return time.time_ns() // 1000


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

    @property
    def loaded(self) -> LoadedStage | None:
        """The shard in memory, if any."""
        return self._loaded

    def load(self, loaded: LoadedStage | None) -> None:
        """Serve this stage from now on, or (``None``) refuse everything as not ready."""
        self._loaded = loaded
        if loaded is None:
            self._seen.forget_outputs()

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
        key = AttemptKey.of(header)
        if self._seen.join(key, delivery):
            self._counters.add(duplicates=1)
            return
        known = self._seen.output_of(key)
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
        if header.stage_index != index or address.stage_index != index:
            return NackReason.MISROUTED, f"expected stage {index}, got {header.stage_index}"
        if len(header.route) != loaded.plan.num_stages or header.route[index] != self._device:
            return NackReason.MISROUTED, f"route {header.route!r:.200} does not lead through here"
        if index and address.sender not in loaded.feeders:
            return NackReason.MISROUTED, f"{address.sender} does not serve stage {index - 1}"
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
        loaded, header = self._loaded, activation.header
        assert loaded is not None
        spec, where = loaded.spec, f"stage {loaded.spec.stage_index} on {self._device}"
        batch = Batch.of(header)
        self._marker.begin(batch)
        try:
            # Before anything is allocated: small inputs of many images may be large further on.
            images = _count_images(f"{where}, input", loaded, header, activation.tensors)
            # What the codecs do lies outside of started to finished: that is the engine's time.
            inputs = expand(header.codec, spec.inputs, activation.tensors, f"{where}, input")
            started_us, started = now_us(), time.perf_counter()
            outputs = loaded.engine.run(inputs)
            answered = check_tensors(f"{where}, output", spec.outputs, outputs)
            if answered != images:
                raise EngineError(f"{where}: {images} images went in, {answered} came out")
            finished_us, compute_s = now_us(), time.perf_counter() - started
            outputs = _compressed(where, spec, outputs)
        except WireFormatError as error:
            self._refuse(header, NackReason.INVALID, str(error), [delivery])
            return
        except EngineError as error:
            self._refuse(header, NackReason.ENGINE_FAILED, str(error), [delivery])
            return
        finally:
            self._marker.end(batch)
        self._counters.add(
            batches=1,
            images=images,
            compute_s=compute_s,
            wait_s=max(0, started_us - received_us) / 1e6,
        )
        hop = Hop(received_us, started_us, finished_us, 0)
        self._publish(key, header, delivery, self._output(loaded, header, hop, outputs))

    def _output(self, loaded: LoadedStage, header: Header, hop: Hop, outputs: Tensors) -> Output:
        index = loaded.spec.stage_index + 1
        sent_us = now_us()
        onward = replace(
            header,
            stage_index=index,
            codec=loaded.spec.codec,
            sent_us=sent_us,
            trace=(*header.trace, hop._replace(sent_us=sent_us)),
        )
        if loaded.is_last:
            topic = topics.result_topic(self._cluster, header.client, self._device)
        else:
            topic = topics.input_topic(
                self._cluster, header.route[index], header.plan_id, index, self._device
            )
        return Output(topic, encode(onward, outputs))

    def _publish(self, key: AttemptKey, header: Header, delivery: Delivery, output: Output) -> None:
        self._seen.begin(key, delivery, output)
        published_at = time.perf_counter()
        try:
            future = self._connection.publish(output.topic, output.payload)
        except MessageTooLargeError as error:
            self._refuse(header, NackReason.PUBLISH_REFUSED, str(error), self._seen.end(key))
            return
        self._counters.add(bytes_out=len(output.payload))
        future.add_done_callback(partial(self._published, key, header, published_at))

    # From here on: called on the network thread, so nothing may wait.

    def _published(
        self, key: AttemptKey, header: Header, published_at: float, future: Future[PublishOutcome]
    ) -> None:
        self._counters.add(published=1, publish_s=time.perf_counter() - published_at)
        deliveries = self._seen.end(key)
        error = future.exception()
        if error is not None:
            self._refuse(header, NackReason.PUBLISH_REFUSED, str(error), deliveries)
        elif future.result() is PublishOutcome.NO_SUBSCRIBER:
            hop = header.stage_index + 1
            to = header.route[hop] if hop < len(header.route) else header.client
            self._refuse(header, NackReason.NO_SUBSCRIBER, f"nobody listens as {to}", deliveries)
        else:
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


def _count_images(where: str, loaded: LoadedStage, header: Header, tensors: Tensors) -> int:
    """How many images an input holds: at most as many as the plan was made for.

    Raises:
        TensorMismatchError: these are not the tensors that the plan names, or are too many images.
    """
    images = check_tensors(where, wire_specs(header.codec, loaded.spec.inputs), tensors)
    if images > loaded.plan.batch_size:
        raise TensorMismatchError(
            f"{where}: {images:,} images, plan {loaded.plan.plan_id} was made for at most "
            f"{loaded.plan.batch_size:,}"
        )
    return images


def _compressed(where: str, spec: StageSpec, outputs: Tensors) -> Tensors:
    """Outputs as they travel. Values that the codec cannot carry are the engine's failure."""
    try:
        return compress(spec.codec, outputs)
    except WireFormatError as error:
        raise EngineError(f"{where}, output: {error}") from error


def _acknowledge(deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        delivery.ack()
