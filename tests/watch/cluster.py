"""A cluster whose messages a test writes, and the view that follows from them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from broker.transport import AckToken, Delivery
from client.watch.state import ClusterState
from client.watch.view import ClusterView
from contract import topics
from contract.metrics import DeviceMetrics, Ledger, PipelineMetrics, StageMetrics
from contract.plan import Plan, Replica, place
from contract.prediction import DevicePrediction, EdgePrediction, Prediction
from contract.status import Capabilities, DeviceState, DeviceStatus, Event, EventKind, ShardState
from tests.tiny import make_tiny_plan

CLUSTER = "home"
CORES, MEMORY_BYTES = 4, 4_000_000_000


class Clock:
    """Monotonic seconds that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def delivery(topic: str, payload: bytes | str, retained: bool = False) -> Delivery:
    data = payload.encode() if isinstance(payload, str) else payload
    return Delivery(topic, data, 1, retained, AckToken(lambda: None))


def device_metrics(device: str, **changes: object) -> DeviceMetrics:
    figures: dict[str, object] = {
        "device": device,
        "time_unix_s": 1_795_251_386.2,
        "uptime_s": 8.0,
        "plan_id": None,
        "stage_index": None,
        "shard": "idle",
        "batches_total": 581,
        "images_total": 4648,
        "batches_per_s": 10.0,
        "images_per_s": 80.0,
        "compute_ms_mean": 30.0,
        "wait_ms_mean": 4.6,
        "publish_ms_mean": 2.0,
        "utilisation": 0.3,
        "queue_depth": 1,
        "bytes_in_total": 14_487_816,
        "bytes_out_total": 9_770_096,
        "bytes_in_per_s": 3_736_821.1,
        "bytes_out_per_s": 2_536_786.5,
        "rejected_total": 0,
        "nacks_total": 0,
        "duplicates_total": 0,
        "reconnects_total": 0,
        "cpu_percent": 35.0,
        "rss_bytes": 82_841_600,
        "memory_available_bytes": 2_400_000_000,
        "temperature_celsius": 51.0,
        "throttled": (),
    }
    return DeviceMetrics.model_validate(figures | changes)


def pipeline_metrics(
    of_client: str, of_plan: str, num_stages: int = 3, **changes: object
) -> PipelineMetrics:
    ledger = {
        "submitted": 834,
        "delivered": 828,
        "in_flight": 6,
        "retried": 0,
        "duplicates_dropped": 0,
        "dead": 0,
        "lost": 0,
    }
    ledger |= changes.pop("ledger", {})  # type: ignore[arg-type]
    figures: dict[str, object] = {
        "client": of_client,
        "time_unix_s": 1_795_251_387.8,
        "plan_id": of_plan,
        "window": 6,
        "batches_per_s": 10.0,
        "images_per_s": 80.0,
        "latency_ms_p50": 310.0,
        "latency_ms_p95": 495.0,
        "latency_ms_p99": 553.0,
        "stages": tuple(
            StageMetrics(
                stage_index=index,
                compute_ms_p50=30.0,
                wait_ms_p50=4.0,
                utilisation=0.3,
                bubble_s=0.7,
            )
            for index in range(num_stages)
        ),
        "ledger": Ledger(**ledger),
    }
    return PipelineMetrics.model_validate(figures | changes)


def device_status(device: str, plan: Plan | None = None, **changes: object) -> DeviceStatus:
    stage = None if plan is None else plan.stage_of(device)
    figures: dict[str, object] = {
        "device": device,
        "state": DeviceState.ONLINE,
        "boot": 1,
        "shard": ShardState.IDLE if stage is None else ShardState.READY,
        "plan_id": None if stage is None or plan is None else plan.plan_id,
        "stage_index": None if stage is None else stage.stage_index,
        "capabilities": Capabilities(
            machine="aarch64",
            cores=CORES,
            memory_bytes=MEMORY_BYTES,
            engine="onnxruntime",
            engine_version="1.23.2",
            shardline_version="0.1.0",
        ),
    }
    return DeviceStatus.model_validate(figures | changes)


class Cluster:
    """Says what devices and clients say, to a :class:`ClusterState`."""

    def __init__(self, plan: Plan | None = None, connected: bool = True) -> None:
        self.clock = Clock()
        self.state = ClusterState(CLUSTER, self.clock)
        self.state.set_connected(connected)
        self.plan = plan
        if plan is not None:
            assert self.publish_plan(plan)

    def publish_plan(self, plan: Plan) -> bool:
        return self.state.take(delivery(topics.plan_topic(CLUSTER), plan.to_message(), True))

    def status(self, status: DeviceStatus, retained: bool = False) -> bool:
        topic = topics.status_topic(CLUSTER, status.device)
        return self.state.take(delivery(topic, status.model_dump_json(), retained))

    def online(self, device: str, **changes: object) -> bool:
        return self.status(device_status(device, self.plan, **changes))

    def metrics(self, device: str, **changes: object) -> bool:
        stage = None if self.plan is None else self.plan.stage_of(device)
        if stage is not None and self.plan is not None:
            own = {"plan_id": self.plan.plan_id, "stage_index": stage.stage_index}
            changes = own | {"shard": "ready"} | changes
        metrics = device_metrics(device, **changes)
        topic = topics.metrics_topic(CLUSTER, device)
        return self.state.take(delivery(topic, metrics.model_dump_json()))

    def feeds(self, client: str = "client-1", **changes: object) -> bool:
        assert self.plan is not None
        metrics = pipeline_metrics(client, self.plan.plan_id, self.plan.num_stages, **changes)
        topic = topics.pipeline_metrics_topic(CLUSTER, client)
        return self.state.take(delivery(topic, metrics.model_dump_json()))

    def event(self, sender: str, kind: EventKind, detail: str, **changes: object) -> bool:
        event = Event(kind=kind, sender=sender, time_unix_s=1.0, detail=detail, **changes)  # type: ignore[arg-type]
        topic = topics.event_topic(CLUSTER, sender)
        return self.state.take(delivery(topic, event.model_dump_json()))

    def view(self) -> ClusterView:
        return self.state.view()


def plan_on(
    folder: Path, devices: Sequence[Sequence[str]], prediction: Prediction | None = None
) -> Plan:
    """The tiny model's three stages, each on these devices."""
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=folder))
    base = make_tiny_plan(own, devices=(), cluster=CLUSTER)
    placed = place(base, [[Replica(device=d) for d in names] for names in devices], CLUSTER)
    return placed.model_copy(update={"prediction": prediction})


def prediction(devices: Sequence[Sequence[str]], **changes: object) -> Prediction:
    figures: dict[str, object] = {
        "images_per_s": 100.0,
        "latency_ms": 120.0,
        "loaded_latency_ms": 300.0,
        "window": 6,
        "bottleneck": "stage 1 on pi-1",
        "bound_images_per_s": 100.0,
        "broker_bytes_per_image": 40_000.0,
        "devices": tuple(
            DevicePrediction(
                device=name,
                stage_index=index,
                share=1 / len(names),
                compute_ms=30.0,
                relay_ms=1.0,
                transfer_ms=changes.pop(name, 5.0),  # type: ignore[arg-type]
                utilisation=0.4,
                memory_bytes=80_000_000,
            )
            for index, names in enumerate(devices)
            for name in names
        ),
        "edges": tuple(
            EdgePrediction(
                edge=index,
                codec="float32",
                bytes_per_batch=100_000,
                transfer_ms=5.0,
                broker_ms=changes.get("broker_ms", 1.0),  # type: ignore[arg-type]
            )
            for index in range(len(devices) + 1)
        ),
        "based_on": "test",
    }
    changes.pop("broker_ms", None)
    return Prediction.model_validate(figures | changes)
