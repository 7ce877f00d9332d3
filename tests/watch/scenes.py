"""Clusters to look at: what the tests of `shardline top` draw, and its pictures too."""

import math
from pathlib import Path

from contract import topics
from contract.metrics import StageMetrics
from contract.plan import Plan
from contract.status import DeviceState, EventKind
from tests.watch.cluster import Cluster, delivery, plan_on, prediction

STAGES = [["pi-0"], ["pi-1", "pi-3"], ["pi-2"]]
EVIL = "\x1b[2J\x1b]0;owned\x07[bold red]x[/][link=file:///etc/passwd]y"
MANY = 50


def running(folder: Path, seconds: int = 40) -> Cluster:
    """Three stages on four devices in the middle of a run, and a fifth device that is spare."""
    cluster = Cluster(_named(plan_on(folder, STAGES, prediction(STAGES, images_per_s=84.0))))
    names = [name for names in STAGES for name in names] + ["pi-4"]
    for name in names:
        cluster.online(name, boot=1)
    for topic, total in ((topics.BROKER_UPTIME, "183600 seconds"), (topics.BROKER_CLIENTS, "7")):
        cluster.state.take(delivery(topic, total, True))
    cluster.state.take(delivery(topics.BROKER_DROPPED, "0", True))
    for second in range(seconds):
        wave = math.sin(second / 4)
        for name in names:
            _device_second(cluster, name, wave)
        cluster.feeds(
            "client-1a2b3c4d",
            images_per_s=80.0 + 6 * wave - (40 if second < 4 else 0),
            latency_ms_p50=310.0 + 12 * wave,
            stages=_SEEN,
            ledger={"submitted": 834 + 10 * second, "delivered": 828 + 10 * second, "retried": 2},
        )
        if second % 10 == 0:
            for topic, rate in (
                (topics.BROKER_BYTES_RECEIVED, 9_700_000),
                (topics.BROKER_BYTES_SENT, 9_900_000),
            ):
                cluster.state.take(delivery(topic, str(rate * (second + 1))))
        cluster.clock.now += 1
    cluster.event("pi-3", EventKind.SHARD_READY, "stage 1 of plan tiny")
    cluster.event("client-1a2b3c4d", EventKind.DEVICE_LOST, "device pi-3: offline")
    cluster.event("client-1a2b3c4d", EventKind.BATCH_RETRIED, "batch 7:812: pi-3 was lost", count=2)
    cluster.clock.now -= 0.5
    return cluster


def _named(plan: Plan) -> Plan:
    return plan.model_copy(update={"name": "mobilenet_v2"})


_SEEN = tuple(
    StageMetrics(
        stage_index=index,
        compute_ms_p50=compute_ms,
        wait_ms_p50=wait_ms,
        utilisation=share,
        bubble_s=1.0 - share,
    )
    for index, (compute_ms, wait_ms, share) in enumerate(
        ((61.2, 4.0, 0.61), (119.6, 38.0, 0.95), (39.8, 2.1, 0.4))
    )
)
_OF = {
    "pi-0": {"utilisation": 0.61, "compute_ms_mean": 61.2, "cpu_percent": 78.0},
    "pi-1": {"utilisation": 0.97, "compute_ms_mean": 121.0, "cpu_percent": 112.0},
    "pi-3": {"utilisation": 0.93, "compute_ms_mean": 118.0, "cpu_percent": 108.0},
    "pi-2": {"utilisation": 0.40, "compute_ms_mean": 39.8, "cpu_percent": 55.0},
}


def _device_second(cluster: Cluster, name: str, wave: float) -> None:
    own: dict[str, object] = {"temperature_celsius": 55.0 + 4 * wave}
    own |= _OF.get(name, {"utilisation": 0.0, "batches_per_s": 0.0, "compute_ms_mean": None})
    if name == "pi-4":
        own |= {"bytes_in_per_s": 0.0, "bytes_out_per_s": 0.0, "cpu_percent": 1.0, "queue_depth": 0}
    if name == "pi-1":
        own |= {"queue_depth": 3, "temperature_celsius": 82.0 + wave}
        own |= {"throttled": ("soft_temperature_limit", "under_voltage_earlier")}
    cluster.metrics(name, **own)


def a_device_lost(folder: Path) -> Cluster:
    """The same, four seconds after the only device of stage 2 was unplugged."""
    cluster = running(folder)
    cluster.online("pi-2", state=DeviceState.OFFLINE, boot=1)
    for _second in range(4):
        cluster.clock.now += 1
        for name in ("pi-0", "pi-1", "pi-3", "pi-4"):
            cluster.metrics(
                name,
                utilisation=0.0,
                batches_per_s=0.0,
                bytes_in_per_s=0.0,
                bytes_out_per_s=0.0,
                queue_depth=0,
                cpu_percent=2.0,
            )
        cluster.feeds(
            "client-1a2b3c4d", images_per_s=0.0, batches_per_s=0.0, ledger={"retried": 6}, stages=()
        )
    cluster.event("client-1a2b3c4d", EventKind.DEVICE_LOST, "device pi-2: offline")
    return cluster


def broker_gone(folder: Path) -> Cluster:
    """The same, twelve seconds after the broker went."""
    cluster = running(folder)
    cluster.state.set_connected(False)
    cluster.clock.now += 12
    return cluster


def fifty(folder: Path) -> Cluster:
    """Fifty devices in three stages, all of which publish."""
    stages = [[f"pi-{n:02d}" for n in range(MANY) if n % 3 == stage] for stage in range(3)]
    cluster = Cluster(plan_on(folder, stages))
    for number in range(MANY):
        cluster.online(f"pi-{number:02d}")
        cluster.metrics(f"pi-{number:02d}", utilisation=number / MANY)
    cluster.feeds("client-1")
    return cluster


def nothing_yet() -> Cluster:
    """A broker on which nobody has said anything."""
    return Cluster()


def hostile(folder: Path) -> Cluster:
    """Texts of other processes that a terminal or rich would obey."""
    plan = plan_on(folder, STAGES)
    cluster = Cluster(plan.model_copy(update={"name": f"tiny{EVIL}"}))
    cluster.online("pi-0", error=EVIL)
    cluster.metrics("pi-0", throttled=(EVIL,))
    cluster.event("pi-0", EventKind.MESSAGE_REJECTED, f"漢字{EVIL}" * 3)
    return cluster
