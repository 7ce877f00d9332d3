"""What an observer knows as text for Prometheus, made anew at every scrape: nothing is kept twice.

Names follow https://prometheus.io/docs/practices/naming: base units, counters end in `_total`.
Values of labels are names that a topic can hold, numbers of stages, ids of plans, and words of a
fixed list: whatever a device says of itself makes no label.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from client.watch.view import ClusterView, DeviceView, PipelineView
from contract.metrics import THROTTLED_FLAGS
from contract.status import DeviceState, ShardState
from contract.topics import is_plan_id

Labels = tuple[str, ...]
Sample = tuple[Labels, float]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its full name, what it means, its labels after `cluster`."""

    name: str
    help: str
    labels: Labels = ()

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        """A counter is what is called so."""
        return "counter" if self.name.endswith("_total") else "gauge"


_DEVICE, _PIPELINE, _STAGE = ("device",), ("client",), ("client", "stage")
_LAST = "over the last second"

FAMILIES = tuple(
    Family(f"shardline_{name}", text, labels)
    for name, text, labels in (
        ("watch_connected", "Whether this process hears the broker (1) or not (0).", ()),
        ("watch_ignored_messages_total", "Messages heard that were none, or malformed.", ()),
        ("plan_info", "1 for the published plan.", ("plan_id",)),
        ("plan_predicted_images_per_second", "Predicted rate of a plan that takes images.", ()),
        ("plan_predicted_tokens_per_second", "Predicted rate of a language model's plan.", ()),
        ("broker_uptime_seconds", "Since Mosquitto started.", ()),
        ("broker_received_bytes_total", "Bytes that the broker has received.", ()),
        ("broker_sent_bytes_total", "Bytes that the broker has sent.", ()),
        ("broker_dropped_messages_total", "Messages that the broker took and did not keep.", ()),
        ("broker_connections", "Connections to the broker that stand.", ()),
        ("device_online", "1 while the device is connected to the broker, else 0.", _DEVICE),
        (
            "device_info",
            "1; which stage of which plan the device serves, and where it is with its shard.",
            ("device", "stage", "plan_id", "shard"),
        ),
        ("device_uptime_seconds", "Since the device's agent started.", _DEVICE),
        ("device_batches_total", "Batches computed, repeated attempts included.", _DEVICE),
        ("device_images_total", "Images in those batches.", _DEVICE),
        ("device_images_per_second", f"Images computed, {_LAST}.", _DEVICE),
        ("device_compute_seconds", f"Mean time to compute a batch, {_LAST}.", _DEVICE),
        ("device_wait_seconds", f"Mean time from arrival to computing, {_LAST}.", _DEVICE),
        ("device_publish_seconds", f"Mean time to hand an output to the broker, {_LAST}.", _DEVICE),
        ("device_utilisation_ratio", f"Share of the time spent computing, {_LAST}.", _DEVICE),
        ("device_queued_messages", "Messages received and not begun.", _DEVICE),
        ("device_received_bytes_total", "Payloads received on input topics.", _DEVICE),
        ("device_sent_bytes_total", "Payloads of outputs published.", _DEVICE),
        ("device_rejected_messages_total", "Messages that named no client to answer.", _DEVICE),
        ("device_refused_batches_total", "Batches refused with a reason (NACK).", _DEVICE),
        ("device_duplicate_messages_total", "Second deliveries of an attempt.", _DEVICE),
        ("device_reconnects_total", "Connections to the broker after the first.", _DEVICE),
        ("device_cpu_ratio", "Processor time of the agent; 1 is one core.", _DEVICE),
        ("device_memory_resident_bytes", "Resident memory of the agent's process.", _DEVICE),
        ("device_memory_available_bytes", "Memory available on the whole board.", _DEVICE),
        ("device_temperature_celsius", "The board's hottest sensor.", _DEVICE),
        ("device_tokens_per_second", f"Tokens computed by a language model, {_LAST}.", _DEVICE),
        ("device_cache_bytes", "Memory of a language model's caches.", _DEVICE),
        ("device_cached_sequences", "Sequences that have a cache.", _DEVICE),
        ("device_evicted_caches_total", "Caches given up for want of room.", _DEVICE),
        (
            "device_throttled",
            "Whether the board's firmware raises this flag (1) or not (0).",
            ("device", "flag"),
        ),
        ("pipeline_window_batches", "The most batches that may be in flight.", _PIPELINE),
        ("pipeline_batches_per_second", f"Batches delivered, {_LAST}.", _PIPELINE),
        ("pipeline_images_per_second", f"Images delivered, {_LAST}.", _PIPELINE),
        (
            "pipeline_latency_seconds",
            "Percentiles of the latency of recent batches, from submission to result.",
            ("client", "percentile"),
        ),
        ("pipeline_submitted_batches_total", "Batches taken in by the client.", _PIPELINE),
        ("pipeline_delivered_batches_total", "Batches with a result.", _PIPELINE),
        ("pipeline_retried_attempts_total", "Attempts after the first of a batch.", _PIPELINE),
        ("pipeline_duplicate_results_total", "Results of batches that had one.", _PIPELINE),
        ("pipeline_dead_batches_total", "Batches given up with a reason.", _PIPELINE),
        ("pipeline_in_flight_batches", "Batches sent, neither delivered nor dead.", _PIPELINE),
        ("pipeline_lost_batches", "Batches without result or reason; must be 0.", _PIPELINE),
        ("pipeline_tokens_per_second", f"Tokens of texts, {_LAST}.", _PIPELINE),
        ("pipeline_first_token_seconds", "Median time to a text's first token.", _PIPELINE),
        (
            "pipeline_near_tied_tokens_total",
            "Tokens that another attempt chose otherwise.",
            _PIPELINE,
        ),
        ("stage_compute_seconds", f"Median time to compute a batch, {_LAST}.", _STAGE),
        ("stage_wait_seconds", f"Median time from arrival to computing, {_LAST}.", _STAGE),
        ("stage_utilisation_ratio", f"Share of the time spent computing, {_LAST}.", _STAGE),
        ("stage_bubble_seconds", f"Time in which the stage computed nothing, {_LAST}.", _STAGE),
    )
)
"""Every metric that there can be. A device or a client that is not heard any more has none of its
own but `shardline_device_online`."""


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _cluster_samples(view: ClusterView) -> Iterator[tuple[str, Labels, float | None]]:
    yield "watch_connected", (), float(view.is_connected)
    yield "watch_ignored_messages_total", (), float(view.ignored)
    if view.plan is not None:
        yield "plan_info", (view.plan.plan_id,), 1.0
        if view.plan.prediction is not None:
            unit = "images" if view.plan.decoding is None else "tokens"
            yield f"plan_predicted_{unit}_per_second", (), view.plan.prediction.images_per_s
    if view.is_connected:
        broker = view.broker
        yield "broker_uptime_seconds", (), broker.uptime_s
        yield "broker_received_bytes_total", (), broker.bytes_received
        yield "broker_sent_bytes_total", (), broker.bytes_sent
        yield "broker_dropped_messages_total", (), broker.messages_dropped
        yield "broker_connections", (), broker.clients_connected


def _device_samples(
    device: DeviceView, is_connected: bool
) -> Iterator[tuple[str, Labels, float | None]]:
    name = (device.name,)
    if device.status is not None and is_connected:
        yield "online", name, float(device.status.state is DeviceState.ONLINE)
    metrics = device.metrics
    if metrics is None or not device.is_fresh:
        return
    stage = "" if metrics.stage_index is None else str(metrics.stage_index)
    plan_id = metrics.plan_id if metrics.plan_id and is_plan_id(metrics.plan_id) else ""
    shard = metrics.shard if metrics.shard in set(ShardState) else ""
    yield "info", (device.name, stage, plan_id, shard), 1.0
    yield "uptime_seconds", name, metrics.uptime_s
    yield "batches_total", name, metrics.batches_total
    yield "images_total", name, metrics.images_total
    yield "images_per_second", name, metrics.images_per_s
    yield "compute_seconds", name, _seconds(metrics.compute_ms_mean)
    yield "wait_seconds", name, _seconds(metrics.wait_ms_mean)
    yield "publish_seconds", name, _seconds(metrics.publish_ms_mean)
    yield "utilisation_ratio", name, metrics.utilisation
    yield "queued_messages", name, metrics.queue_depth
    yield "received_bytes_total", name, metrics.bytes_in_total
    yield "sent_bytes_total", name, metrics.bytes_out_total
    yield "rejected_messages_total", name, metrics.rejected_total
    yield "refused_batches_total", name, metrics.nacks_total
    yield "duplicate_messages_total", name, metrics.duplicates_total
    yield "reconnects_total", name, metrics.reconnects_total
    yield "cpu_ratio", name, metrics.cpu_percent / 100
    yield "memory_resident_bytes", name, metrics.rss_bytes
    yield "memory_available_bytes", name, metrics.memory_available_bytes
    yield "temperature_celsius", name, metrics.temperature_celsius
    yield "tokens_per_second", name, metrics.tokens_per_s
    yield "cache_bytes", name, metrics.cache_bytes
    yield "cached_sequences", name, metrics.cache_sequences
    yield "evicted_caches_total", name, metrics.cache_evictions_total
    if metrics.throttled is not None:
        for flag in THROTTLED_FLAGS:
            yield "throttled", (device.name, flag), float(flag in metrics.throttled)


def _pipeline_samples(pipeline: PipelineView) -> Iterator[tuple[str, Labels, float | None]]:
    if not pipeline.is_fresh:
        return
    metrics, name = pipeline.metrics, (pipeline.client,)
    ledger = metrics.ledger
    yield "pipeline_window_batches", name, metrics.window
    yield "pipeline_batches_per_second", name, metrics.batches_per_s
    yield "pipeline_images_per_second", name, metrics.images_per_s
    for percentile in ("50", "95", "99"):
        value = getattr(metrics, f"latency_ms_p{percentile}")
        yield "pipeline_latency_seconds", (pipeline.client, percentile), _seconds(value)
    yield "pipeline_submitted_batches_total", name, ledger.submitted
    yield "pipeline_delivered_batches_total", name, ledger.delivered
    yield "pipeline_retried_attempts_total", name, ledger.retried
    yield "pipeline_duplicate_results_total", name, ledger.duplicates_dropped
    yield "pipeline_dead_batches_total", name, ledger.dead
    yield "pipeline_in_flight_batches", name, ledger.in_flight
    yield "pipeline_lost_batches", name, ledger.lost
    yield "pipeline_tokens_per_second", name, metrics.tokens_per_s
    yield "pipeline_first_token_seconds", name, _seconds(metrics.first_token_ms)
    yield "pipeline_near_tied_tokens_total", name, metrics.near_ties_total
    for stage in metrics.stages:
        place = pipeline.client, str(stage.stage_index)
        yield "stage_compute_seconds", place, _seconds(stage.compute_ms_p50)
        yield "stage_wait_seconds", place, _seconds(stage.wait_ms_p50)
        yield "stage_utilisation_ratio", place, stage.utilisation
        yield "stage_bubble_seconds", place, stage.bubble_s


def samples(view: ClusterView) -> dict[str, dict[Labels, float]]:
    """Of every metric that has a value, by its full name, its labels after `cluster` and values."""
    found: dict[str, dict[Labels, float]] = {}

    def add(prefix: str, told: Iterable[tuple[str, Labels, float | None]]) -> None:
        for name, labels, value in told:
            if value is not None:
                found.setdefault(f"shardline_{prefix}{name}", {})[labels] = float(value)

    add("", _cluster_samples(view))
    for device in view.devices:
        add("device_", _device_samples(device, view.is_connected))
    for pipeline in view.pipelines:
        add("", _pipeline_samples(pipeline))
    return found


class ClusterCollector(Collector):
    """Makes the metrics of what ``look`` sees, whenever Prometheus asks."""

    def __init__(self, look: Callable[[], ClusterView]) -> None:
        self._look = look

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """See :class:`prometheus_client.registry.Collector`."""
        view = self._look()
        found = samples(view)
        for family in FAMILIES:
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = make(family.name, family.help, labels=("cluster", *family.labels))
            for labels, value in found.get(family.name, {}).items():
                metric.add_metric((view.cluster, *labels), value)
            yield metric
