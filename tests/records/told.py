"""What a cluster says of itself, as tests want it: messages, and somebody who publishes them."""

import secrets
from collections.abc import Sequence

from broker.transport import AckToken, Callbacks, Connect, ConnectionSettings, Delivery
from contract import topics
from contract.activation import Hop
from contract.frozen import FrozenModel
from contract.metrics import DeviceMetrics, Ledger, PipelineMetrics, StageMetrics
from contract.plan import Plan
from contract.status import Capabilities, DeviceState, DeviceStatus, ShardState
from contract.trace import BatchTrace, TraceMetrics

EPOCH = "6a977ab214f5c9e5"
NOON_US = 1_795_219_200_000_000


def device_metrics(device: str = "pi-0", **changes: object) -> DeviceMetrics:
    told = {
        "device": device,
        "time_unix_s": NOON_US / 1e6,
        "uptime_s": 10.0,
        "plan_id": "0123456789abcdef",
        "stage_index": 0,
        "shard": "ready",
        "batches_total": 100,
        "images_total": 800,
        "batches_per_s": 10.0,
        "images_per_s": 80.0,
        "compute_ms_mean": 4.0,
        "wait_ms_mean": 1.0,
        "publish_ms_mean": 0.5,
        "utilisation": 0.4,
        "queue_depth": 1,
        "bytes_in_total": 1000,
        "bytes_out_total": 2000,
        "bytes_in_per_s": 100.0,
        "bytes_out_per_s": 200.0,
        "rejected_total": 0,
        "nacks_total": 0,
        "duplicates_total": 0,
        "reconnects_total": 0,
        "cpu_percent": 50.0,
        "rss_bytes": 90_000_000,
        "memory_available_bytes": 300_000_000,
        "temperature_celsius": 55.5,
        "throttled": (),
        "tokens_per_s": 12.5,
        "cache_bytes": 4_000_000,
        "cache_sequences": 3,
        "cache_evictions_total": 1,
    }
    return DeviceMetrics.model_validate(told | changes)


def pipeline_metrics(
    client: str = "client-a", plan_id: str = "0123456789abcdef", **changes: object
) -> PipelineMetrics:
    told = {
        "client": client,
        "time_unix_s": NOON_US / 1e6,
        "plan_id": plan_id,
        "window": 6,
        "batches_per_s": 12.5,
        "images_per_s": 100.0,
        "latency_ms_p50": 30.0,
        "latency_ms_p95": 50.0,
        "latency_ms_p99": 60.0,
        "stages": tuple(
            StageMetrics(
                stage_index=index,
                compute_ms_p50=4.0 + index,
                wait_ms_p50=1.0,
                utilisation=0.25 * (index + 1),
                bubble_s=0.5,
            )
            for index in range(3)
        ),
        "ledger": Ledger(
            submitted=20,
            delivered=14,
            in_flight=5,
            retried=2,
            duplicates_dropped=1,
            dead=1,
            lost=0,
        ),
    }
    return PipelineMetrics.model_validate(told | changes)


def batch_trace(
    seq: int = 0,
    route: Sequence[str] = ("pi-0", "pi-1", "pi-2"),
    compute_us: int = 4_000,
    every_us: int = 20_000,
    **changes: object,
) -> BatchTrace:
    """A batch that waits 1 ms at every stage and goes on within 0.5 ms; 2 ms on each way.

    Batches follow one another at ``every_us``. Clocks of devices are a second apart.
    """
    begin = NOON_US + seq * every_us
    hops, at = [], begin + 3_000
    for index in range(len(route)):
        received = at + 1_000_000 * index
        hops.append(
            Hop(
                received,
                received + 1_000,
                received + 1_000 + compute_us,
                received + 1_500 + compute_us,
            )
        )
        at += 1_500 + compute_us + 2_000
    told = {
        "epoch": EPOCH,
        "seq": seq,
        "attempt": 1,
        "images": 8,
        "queued_us": begin,
        "sent_us": begin + 1_000,
        "received_us": at,
        "route": tuple(route),
        "hops": tuple(hops),
        "bytes_in": 1_200,
        "bytes_out": 400,
    }
    return BatchTrace.model_validate(told | changes)


def trace_metrics(
    *batches: BatchTrace,
    client: str = "client-a",
    plan_id: str = "0123456789abcdef",
    omitted: int = 0,
) -> TraceMetrics:
    return TraceMetrics(
        client=client,
        time_unix_s=NOON_US / 1e6,
        plan_id=plan_id,
        batches=batches,
        omitted=omitted,
    )


def status(device: str = "pi-0", state: DeviceState = DeviceState.ONLINE) -> DeviceStatus:
    return DeviceStatus(
        device=device,
        state=state,
        boot=7,
        shard=ShardState.READY,
        capabilities=Capabilities(
            machine="aarch64",
            cores=4,
            memory_bytes=2**30,
            engine="onnxruntime",
            engine_version="1.23.2",
            shardline_version="0.1.0",
        ),
    )


def as_json(message: FrozenModel) -> bytes:
    return message.model_dump_json().encode()


class Teller:
    """Publishes as a cluster does: each message on the topic of its sender."""

    def __init__(self, connect: Connect, cluster: str) -> None:
        self._cluster = cluster
        self._connection = connect(
            ConnectionSettings(name=f"teller-{secrets.token_hex(4)}"),
            Callbacks(on_delivery=lambda delivery: delivery.ack()),
        )

    def tell(self, *messages: FrozenModel | Plan) -> None:
        """At QoS 1, so that they are with the broker, in order, when this returns."""
        for message in messages:
            topic, retain = self._topic(message)
            text = message.to_message().encode() if isinstance(message, Plan) else as_json(message)
            self.publish(topic, text, retain=retain)

    def publish(self, topic: str, text: bytes, *, retain: bool = False) -> None:
        self._connection.publish(topic, text, retain=retain).result(timeout=5)

    def _topic(self, message: FrozenModel | Plan) -> tuple[str, bool]:
        match message:
            case Plan():
                return topics.plan_topic(self._cluster), True
            case DeviceStatus():
                return topics.status_topic(self._cluster, message.device), True
            case DeviceMetrics():
                return topics.metrics_topic(self._cluster, message.device), False
            case PipelineMetrics():
                return topics.pipeline_metrics_topic(self._cluster, message.client), False
            case TraceMetrics():
                return topics.trace_topic(self._cluster, message.client), False
        raise TypeError(type(message))

    def close(self) -> None:
        self._connection.close(forget_session=True)


def delivered(topic: str, text: bytes) -> Delivery:
    """As an observer hears it."""
    return Delivery(topic, text, qos=1, retained=False, token=AckToken(lambda: None))
