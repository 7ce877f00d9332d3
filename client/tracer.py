"""Publishes where the time of a client's batches went, and keeps the clocks that this needs.

Nothing is done for a batch on its way but to note three times: the message is built once a second.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from broker.transport import Callbacks, Connection, Delivery
from client.batch import BatchResult
from client.clocks import DeviceClocks
from client.settings import ClientSettings
from client.steady_clock import SteadyClock
from contract import topics
from contract.clock import MAX_CLOCK_BYTES
from contract.errors import WireFormatError
from contract.plan import Plan
from contract.trace import MAX_TRACED, BatchTrace, ClockOffset, TraceMetrics

MAX_HOPS = 1024
"""In one message, of all its batches: a pipeline of many stages tells of fewer batches, so that no
message is larger than an observer takes."""


def trace_metrics(
    client: str,
    plan_id: str,
    time_unix_s: float,
    results: Sequence[BatchResult],
    clocks: tuple[ClockOffset, ...],
) -> TraceMetrics:
    """One message of the newest ``results``.

    Results of attempts that this process has not sent, which a journal may bring, are left out.
    """
    known = [result for result in results if result.sent_us]
    most = min(MAX_TRACED, MAX_HOPS // max([1, *(len(result.hops) for result in known)]))
    told = known[-most:]
    return TraceMetrics(
        client=client,
        time_unix_s=time_unix_s,
        plan_id=plan_id,
        clocks=clocks,
        batches=tuple(map(_trace, told)),
        omitted=len(known) - len(told),
    )


def _trace(result: BatchResult) -> BatchTrace:
    return BatchTrace(
        epoch=f"{result.batch_id.epoch:016x}",
        seq=result.batch_id.seq,
        attempt=result.attempt,
        images=result.batch.images,
        queued_us=result.queued_us,
        sent_us=result.sent_us,
        received_us=result.received_us,
        route=result.route,
        hops=result.hops,
        bytes_in=result.bytes_in,
        bytes_out=result.bytes_out,
    )


class Tracer:
    """What of a pipeline traces. Does nothing where the settings say so."""

    def __init__(self, settings: ClientSettings, clock: SteadyClock) -> None:
        self._settings = settings
        self._clocks = DeviceClocks(clock.now_us)
        self._clock = clock
        self._connection: Connection | None = None
        self.on_trace: Callable[[TraceMetrics], None] = lambda _trace: None

    def wrap(self, callbacks: Callbacks) -> Callbacks:
        """The same callbacks, which hear nothing of answers about the time."""

        def on_delivery(delivery: Delivery) -> None:
            # Nothing else of ours comes at QoS 0: batches pass without a look at their topic.
            if delivery.qos or not self._take(delivery, self._clock.now_us()):
                callbacks.on_delivery(delivery)

        return replace(callbacks, on_delivery=on_delivery)

    def _take(self, delivery: Delivery, heard_us: int) -> bool:
        """Whether it was an answer. What was not asked for is left to be refused by the inbox."""
        try:
            topic = topics.parse_topic(delivery.topic)
        except WireFormatError:
            return False
        too_large = len(delivery.payload) > MAX_CLOCK_BYTES
        if topic.kind != "clock" or delivery.retained or too_large:
            return False
        if not self._clocks.hear(topic.sender, delivery.payload, heard_us):
            return False
        delivery.ack()
        return True

    def begin(self, connection: Connection) -> None:
        """Trace by this connection from now on."""
        if self._settings.traces:
            self._connection = connection
            name, cluster = self._settings.name, self._settings.cluster
            connection.subscribe(topics.clock_filter(cluster, name), qos=0)

    def follow(self, plan: Plan) -> None:
        """The devices of this plan are those whose clocks count."""
        self._clocks.follow(replica.device for spot in plan.placement for replica in spot.replicas)

    def ask(self, now_s: float) -> None:
        """Ask the devices that are due for the time; ``now_s`` is monotonic."""
        if self._connection is not None and self._connection.is_connected:
            self._clocks.ask(now_s, self._send)

    def _send(self, device: str, request: bytes) -> None:
        assert self._connection is not None
        topic = topics.clock_topic(self._settings.cluster, device, self._settings.name)
        self._connection.publish(topic, request, qos=0)

    def publish(self, plan_id: str, results: Sequence[BatchResult]) -> None:
        """Tell of the batches that ended since the last call."""
        if self._connection is None:
            return
        told = trace_metrics(
            self._settings.name,
            plan_id,
            round(time.time(), 3),
            results,
            self._clocks.offsets(),
        )
        self.on_trace(told)
        topic = topics.trace_topic(self._settings.cluster, self._settings.name)
        self._connection.publish(topic, told.model_dump_json().encode(), qos=0)
