"""A cluster that only says that it is one: statuses, metrics and events, without any stage."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broker.transport import AckToken, Callbacks, Connect, ConnectionSettings, Delivery
from client.watch.state import ClusterState
from contract import topics
from contract.frozen import FrozenModel
from contract.metrics import DeviceMetrics, Ledger, PipelineMetrics, StageMetrics
from contract.plan import Plan, Replica, place
from contract.status import (
    Capabilities,
    DeviceState,
    DeviceStatus,
    Event,
    EventKind,
    ShardState,
)
from tests.tiny import make_tiny_plan

CLUSTER = "home"
CLIENT = "client-1"


def plan_on(folder: Path, groups: Sequence[Sequence[str]], cluster: str = CLUSTER) -> Plan:
    """The tests' plan of three stages on these devices."""
    plan = make_tiny_plan(folder, devices=(), cluster=cluster)
    return place(plan, [[Replica(device=name) for name in group] for group in groups], cluster)


def status_of(device: str, plan: Plan | None, **changes: Any) -> DeviceStatus:
    spec = plan.stage_of(device) if plan else None
    fields: dict[str, Any] = {
        "device": device,
        "state": DeviceState.ONLINE,
        "boot": 1,
        "shard": ShardState.READY if spec else ShardState.IDLE,
        "plan_id": plan.plan_id if plan and spec else None,
        "stage_index": spec.stage_index if spec else None,
        "capabilities": Capabilities(
            machine="aarch64",
            cores=4,
            memory_bytes=2_000_000_000,
            engine="onnxruntime",
            engine_version="1.23.2",
            shardline_version="0.1.0",
        ),
    }
    return DeviceStatus(**(fields | changes))


def metrics_of(device: str, plan: Plan | None, **changes: Any) -> DeviceMetrics:
    spec = plan.stage_of(device) if plan else None
    fields: dict[str, Any] = {
        "device": device,
        "time_unix_s": time.time(),
        "uptime_s": 10.0,
        "plan_id": plan.plan_id if plan and spec else None,
        "stage_index": spec.stage_index if spec else None,
        "shard": "ready" if spec else "idle",
        "batches_total": 100,
        "images_total": 800,
        "batches_per_s": 4.0,
        "images_per_s": 32.0,
        "compute_ms_mean": 120.0,
        "wait_ms_mean": 3.0,
        "publish_ms_mean": 2.0,
        "utilisation": 0.48,
        "queue_depth": 1,
        "bytes_in_total": 10**6,
        "bytes_out_total": 10**6,
        "bytes_in_per_s": 2.4e6,
        "bytes_out_per_s": 1.2e6,
        "rejected_total": 0,
        "nacks_total": 0,
        "duplicates_total": 0,
        "reconnects_total": 0,
        "cpu_percent": 50.0,
        "rss_bytes": 143_000_000,
        "memory_available_bytes": 1_400_000_000,
        "temperature_celsius": 61.0,
        "throttled": (),
    }
    return DeviceMetrics(**(fields | changes))


def ledger_of(**changes: int) -> Ledger:
    fields = {
        "submitted": 106,
        "delivered": 100,
        "in_flight": 6,
        "retried": 0,
        "duplicates_dropped": 0,
        "dead": 0,
        "lost": 0,
    }
    return Ledger(**(fields | changes))


def pipeline_of(plan: Plan, client: str = CLIENT, **changes: Any) -> PipelineMetrics:
    fields: dict[str, Any] = {
        "client": client,
        "time_unix_s": time.time(),
        "plan_id": plan.plan_id,
        "window": 6,
        "batches_per_s": 4.0,
        "images_per_s": 32.0,
        "latency_ms_p50": 380.0,
        "latency_ms_p95": 450.0,
        "latency_ms_p99": 610.0,
        "stages": tuple(
            StageMetrics(
                stage_index=index,
                compute_ms_p50=120.0,
                wait_ms_p50=3.0,
                utilisation=0.48,
                bubble_s=0.52,
            )
            for index in range(plan.num_stages)
        ),
        "ledger": ledger_of(),
    }
    return PipelineMetrics(**(fields | changes))


def event_of(detail: str, sender: str = CLIENT, kind: EventKind = EventKind.DEVICE_LOST) -> Event:
    return Event(kind=kind, sender=sender, time_unix_s=time.time(), detail=detail)


class Told:
    """A :class:`ClusterState` that a test tells things, under a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sent = 0.0  # so far apart, by the senders' clocks, that no mean is made of two
        self.state = ClusterState(CLUSTER, lambda: self.now)
        self.state.set_connected(True)

    def tell(self, topic: str, message: FrozenModel | bytes) -> None:
        payload = message if isinstance(message, bytes) else message.model_dump_json().encode()
        delivery = Delivery(topic, payload, 0, False, AckToken(lambda: None))
        assert self.state.take(delivery)

    def plan(self, plan: Plan) -> "Told":
        self.tell(topics.plan_topic(CLUSTER), plan.to_message().encode())
        return self

    def status(self, device: str, plan: Plan | None, **changes: Any) -> "Told":
        self.tell(topics.status_topic(CLUSTER, device), status_of(device, plan, **changes))
        return self

    def metrics(self, device: str, plan: Plan | None, **changes: Any) -> "Told":
        message = metrics_of(device, plan, **({"time_unix_s": self._later()} | changes))
        self.tell(topics.metrics_topic(CLUSTER, device), message)
        return self

    def _later(self) -> float:
        self._sent += 60
        return self._sent

    def device(self, device: str, plan: Plan | None, **changes: Any) -> "Told":
        return self.status(device, plan).metrics(device, plan, **changes)

    def pipeline(self, plan: Plan, client: str = CLIENT, **changes: Any) -> "Told":
        topic = topics.pipeline_metrics_topic(CLUSTER, client)
        message = pipeline_of(plan, client, **({"time_unix_s": self._later()} | changes))
        self.tell(topic, message)
        return self

    def event(self, event: Event) -> "Told":
        self.tell(topics.event_topic(CLUSTER, event.sender), event)
        return self


class Talking:
    """Publishes metrics of many devices over a broker until it is closed."""

    def __init__(
        self,
        connect: Connect,
        cluster: str,
        plan: Plan,
        devices: Sequence[str],
        interval_s: float = 0.2,
    ) -> None:
        self._connection = connect(
            ConnectionSettings(name="made-up"), Callbacks(on_delivery=lambda d: d.ack())
        )
        self.cluster, self.plan, self.devices = cluster, plan, list(devices)
        self.changes: dict[str, dict[str, Any]] = {}
        self._interval_s = interval_s
        self._end = threading.Event()
        self.say(topics.plan_topic(cluster), plan.to_message().encode(), retain=True)
        for device in devices:
            self.status(device)
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def say(self, topic: str, message: FrozenModel | bytes, retain: bool = False) -> None:
        payload = message if isinstance(message, bytes) else message.model_dump_json().encode()
        self._connection.publish(topic, payload, qos=1, retain=retain)

    def status(self, device: str, **changes: Any) -> None:
        topic = topics.status_topic(self.cluster, device)
        self.say(topic, status_of(device, self.plan, **changes), retain=True)

    def lose(self, device: str) -> None:
        """What is seen of a Pi whose plug was pulled."""
        self.devices.remove(device)
        self.status(device, state=DeviceState.OFFLINE)

    def event(self, event: Event) -> None:
        self.say(topics.event_topic(self.cluster, event.sender), event)

    def _talk(self) -> None:
        count = 0
        while not self._end.wait(self._interval_s):
            count += 1
            for index, device in enumerate(tuple(self.devices)):
                busy = {"utilisation": (index * 7 % 100) / 100} | self.changes.get(device, {})
                self.say(
                    topics.metrics_topic(self.cluster, device),
                    metrics_of(device, self.plan, **busy),
                )
            ledger = ledger_of(delivered=count, submitted=count + 6)
            self.say(
                topics.pipeline_metrics_topic(self.cluster, CLIENT),
                pipeline_of(self.plan, ledger=ledger),
            )

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._connection.close(forget_session=True)
