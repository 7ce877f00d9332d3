"""Takes the messages of a cluster in and makes rows and summaries of them. Pure, and bounded.

What it is given was taken in by :class:`client.watch.state.ClusterState` before: it is well-formed,
and speaks for its sender.
"""

from dataclasses import dataclass, field

from broker.transport import Delivery
from client.records.csv_file import Row
from client.records.device_summary import DeviceSummary
from client.records.rows import batch_row, is_sound, pipeline_row, stage_times_ms
from client.records.stage_summary import StageSummary
from client.watch.kept import BROKER_TOPICS
from client.watch.state import MAX_CLIENTS, MAX_DEVICES
from contract import topics
from contract.metrics import DeviceMetrics, PipelineMetrics
from contract.plan import Plan, parse_plan
from contract.trace import BatchTrace, TraceMetrics

MAX_STAGES_KEPT = 256
"""Summaries of the latest plans: 100 KB each, once it has seen a few thousand batches."""


@dataclass
class _Feed:
    """What one client has fed to one plan."""

    plan_id: str
    began_us: int
    compute_us: int = 0
    batches: int = 0
    untraced: int = 0
    devices: set[str] = field(default_factory=set)

    def add(self, batch: BatchTrace) -> float:
        """Count a batch; the pipeline's utilisation so far.

        That is the share of the time since the first batch in which its devices computed, on
        average. Batches without a trace count as much as those with one.
        """
        self.batches += 1
        for device in batch.route:  # whatever names a client makes up
            if len(self.devices) < MAX_DEVICES:
                self.devices.add(device)
        self.compute_us += sum(max(0, hop.finished_us - hop.started_us) for hop in batch.hops)
        elapsed_us = max(1, batch.received_us - self.began_us) * len(self.devices)
        return min(1.0, self.compute_us * (1 + self.untraced / self.batches) / elapsed_us)


class Collection:
    """The rows since the last look, and the summaries of all that came."""

    def __init__(self, recorded_from_unix_s: float) -> None:
        self.recorded_from_unix_s = recorded_from_unix_s
        self.plans: dict[str, Plan] = {}
        """As they were published while we listened, by their ids, the newest last."""
        self.batches = self.unsound = 0
        self._batch_rows: list[Row] = []
        self._pipeline_rows: list[Row] = []
        self._devices: dict[str, DeviceSummary] = {}
        self._stages: dict[tuple[str, int], StageSummary] = {}
        self._feeds: dict[str, _Feed] = {}

    def take(self, delivery: Delivery, now_unix_s: float) -> None:
        """Take one message in that an observer has heard at ``now_unix_s`` by our clock."""
        if delivery.topic in BROKER_TOPICS:
            return
        match topics.parse_topic(delivery.topic).kind:
            case "plan" if delivery.payload:
                self._take_plan(parse_plan(delivery.payload, "the published plan"))
            case "metrics":
                self._take_device(DeviceMetrics.model_validate_json(delivery.payload), now_unix_s)
            case "pipeline_metrics":
                self._take_pipeline(PipelineMetrics.model_validate_json(delivery.payload))
            case "trace":
                self._take_trace(TraceMetrics.model_validate_json(delivery.payload))

    def _take_plan(self, plan: Plan) -> None:
        self.plans.pop(plan.plan_id, None)
        self.plans[plan.plan_id] = plan
        while sum(known.num_stages for known in self.plans.values()) > MAX_STAGES_KEPT:
            oldest = next(iter(self.plans))
            for index in range(self.plans.pop(oldest).num_stages):
                self._stages.pop((oldest, index), None)
        for index in range(plan.num_stages):
            key = plan.plan_id, index
            self._stages.setdefault(key, StageSummary(plan, index)).place(plan)

    def _device(self, name: str) -> DeviceSummary | None:
        if name not in self._devices and len(self._devices) >= MAX_DEVICES:
            return None
        return self._devices.setdefault(name, DeviceSummary(name))

    def _take_device(self, metrics: DeviceMetrics, now_unix_s: float) -> None:
        device = self._device(metrics.device)
        if device is not None:
            device.take(metrics, now_unix_s)

    def _take_pipeline(self, metrics: PipelineMetrics) -> None:
        feed = self._feeds.get(metrics.client)
        self._pipeline_rows.append(pipeline_row(metrics, 0 if feed is None else feed.untraced))
        for stage in metrics.stages:
            summary = self._stages.get((metrics.plan_id, stage.stage_index))
            if summary is not None:
                summary.take_metrics(stage)

    def _take_trace(self, trace: TraceMetrics) -> None:
        sound = [batch for batch in trace.batches if is_sound(batch)]
        self.unsound += len(trace.batches) - len(sound)
        if not sound:
            return
        feed = self._feed(trace, began_us=sound[0].queued_us)
        feed.untraced += trace.omitted
        for batch in sound:
            utilisation = feed.add(batch)
            self._batch_rows.append(batch_row(trace.client, trace.plan_id, batch, utilisation))
            self._take_times(trace.plan_id, batch)
        self.batches += len(sound)

    def _feed(self, trace: TraceMetrics, began_us: int) -> _Feed:
        """Kept in the order of use: clients come and go, often with names that never return."""
        feed = self._feeds.pop(trace.client, None)
        if feed is None or feed.plan_id != trace.plan_id:
            feed = _Feed(trace.plan_id, began_us)
        self._feeds[trace.client] = feed
        if len(self._feeds) > MAX_CLIENTS:
            del self._feeds[next(iter(self._feeds))]
        return feed

    def _take_times(self, plan_id: str, batch: BatchTrace) -> None:
        for index, (name, times) in enumerate(zip(batch.route, stage_times_ms(batch), strict=True)):
            wait_ms, compute_ms, publish_ms = times
            device = self._devices.get(name)  # one that speaks for itself
            if device is not None:
                device.compute_ms.add(compute_ms)
            stage = self._stages.get((plan_id, index))
            if stage is not None:
                stage.take_times(batch.images, wait_ms, compute_ms, publish_ms)

    def take_batch_rows(self) -> list[Row]:
        """Rows of batches.csv that are new."""
        rows, self._batch_rows = self._batch_rows, []
        return rows

    def take_pipeline_rows(self) -> list[Row]:
        """Rows of pipeline.csv that are new."""
        rows, self._pipeline_rows = self._pipeline_rows, []
        return rows

    @property
    def devices(self) -> list[DeviceSummary]:
        """Every device that has sent metrics, by name."""
        return [self._devices[name] for name in sorted(self._devices)]

    def stages_of(self, plan_id: str) -> list[StageSummary]:
        """The stages of a plan of :attr:`plans`."""
        return [self._stages[plan_id, index] for index in range(self.plans[plan_id].num_stages)]

    def device_rows(self) -> list[Row]:
        """All of devices.csv."""
        return [device.row(self.recorded_from_unix_s) for device in self.devices]

    def stage_rows(self) -> list[Row]:
        """All of stages.csv, plans in the order in which they were published last."""
        return [
            stage.row(self.recorded_from_unix_s)
            for plan_id in self.plans
            for stage in self.stages_of(plan_id)
        ]
