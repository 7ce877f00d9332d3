"""What the emulation is worth on this machine: cables, quotas, how much k workers disturb others.

A figure of the emulated cluster is believed to about the noise that this finds, not further.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cluster.cgroups import ProcessorShare
from bench.cluster.devices import DEVICES_CPU, EmulatedDevice
from bench.cluster.network import BROKER, CLIENT
from bench.cluster.rig import Cluster
from bench.cluster.tcp import stream_mbit
from bench.cluster.workers import ControlWorkers
from bench.workers import WholeModelWorker
from contract.plan import load_plan

EQUAL_QUOTA = 0.1
EQUAL_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class CableFigures:
    """One bare TCP stream each way between a host and the broker, in Mbit/s of payload."""

    host: str
    rate_mbit: float
    to_broker_mbit: float
    from_broker_mbit: float


@dataclass(frozen=True, slots=True)
class QuotaFigures:
    """The whole model in a quota: ms an image there, and against the unlimited time / quota.

    ``honest`` is 1 where the quota slows the model down by exactly 1/quota; ``spread`` is the range
    over the median of the rounds.
    """

    device: str
    quota: float
    unlimited_ms: float
    limited_ms: float
    honest: float
    spread: float


@dataclass(frozen=True, slots=True)
class EqualFigures:
    """k equal workers at once: images a second together, and as a share of k times one."""

    count: int
    images_per_s: float
    efficiency: float
    spread: float


def cables(cluster: Cluster) -> list[CableFigures]:
    """Measure every cable, one after another."""
    broker = cluster.hosts[BROKER]
    return [
        CableFigures(
            name,
            cluster.hosts[name].rate_mbit,
            stream_mbit(cluster.hosts[name], broker),
            stream_mbit(broker, cluster.hosts[name]),
        )
        for name in (*cluster.running, CLIENT)
    ]


def quotas(cluster: Cluster, whole: Path, rounds: int, seconds: float) -> list[QuotaFigures]:
    """Run the model in each device's share alone, in turn without and with its limit."""
    plan = load_plan(whole)
    graph = whole / "stage-0" / "graph.onnx"
    shape = tuple(int(size) for size in plan.stages[0].inputs[0].shape[1:])
    found = []
    for device in cluster.running.values():
        free: list[float] = []
        held: list[float] = []
        with ControlWorkers([(graph, shape, device.share)], 1) as worker:
            for _ in range(rounds):
                free.append(1e3 / worker.run(seconds / 2).together)
                with cluster.limited():
                    held.append(1e3 / worker.run(seconds).together)
        ratios = [h * device.device.quota / f for h, f in zip(held, free, strict=True)]
        found.append(
            QuotaFigures(
                device.device.name,
                device.device.quota,
                statistics.median(free),
                statistics.median(held),
                statistics.median(ratios),
                (max(held) - min(held)) / statistics.median(held),
            )
        )
    return found


def equal_workers(whole: Path, rounds: int, seconds: float) -> list[EqualFigures]:
    """1, 2, 4 and 8 workers of a tenth of a processor each, in turn."""
    plan = load_plan(whole)
    graph = whole / "stage-0" / "graph.onnx"
    shape = tuple(int(size) for size in plan.stages[0].inputs[0].shape[1:])
    rates: dict[int, list[float]] = {count: [] for count in EQUAL_COUNTS}
    with ExitStack() as stack:
        workers = []
        for index in range(max(EQUAL_COUNTS)):
            share = stack.enter_context(ProcessorShare(f"equal{index}", EQUAL_QUOTA))
            worker = stack.enter_context(WholeModelWorker(graph, DEVICES_CPU, 1, shape))
            share.add(worker.pid)
            share.limit()
            workers.append(worker)
        for _ in range(rounds):
            for count in EQUAL_COUNTS:
                for worker in workers[:count]:
                    worker.start(seconds)
                rates[count].append(sum(worker.images_per_s() for worker in workers[:count]))
    one = statistics.median(rates[1])
    return [
        EqualFigures(
            count,
            statistics.median(values),
            statistics.median(values) / count / one,
            (max(values) - min(values)) / statistics.median(values),
        )
        for count, values in rates.items()
    ]


def calibrate(
    devices: Sequence[EmulatedDevice],
    broker_mbit: float,
    client_mbit: float,
    whole: Path,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Measure all three and print them."""
    with Cluster(devices, broker_mbit, client_mbit) as cluster:
        found_cables = cables(cluster)
        print("cable     rate  to broker  from broker   Mbit/s of payload; TCP can reach 0.95")
        for cable in found_cables:
            print(
                f"{cable.host:8} {cable.rate_mbit:5.0f}  {cable.to_broker_mbit:9.1f}  "
                f"{cable.from_broker_mbit:11.1f}",
                flush=True,
            )
        found_quotas = quotas(cluster, whole, rounds, seconds)
        print("\ndevice   quota  free ms  limited ms  limited x quota / free  spread")
        for quota in found_quotas:
            print(
                f"{quota.device:8} {quota.quota:5.2f}  {quota.unlimited_ms:7.2f}  "
                f"{quota.limited_ms:10.2f}  {quota.honest:22.3f}  {quota.spread:6.3f}",
                flush=True,
            )
    found_equal = equal_workers(whole, rounds, seconds)
    print(f"\nworkers at {EQUAL_QUOTA}  images/s  efficiency  spread")
    for equal in found_equal:
        print(
            f"{equal.count:14}  {equal.images_per_s:8.2f}  {equal.efficiency:10.3f}  "
            f"{equal.spread:6.3f}",
            flush=True,
        )
    return {
        "cables": [asdict(cable) for cable in found_cables],
        "quotas": [asdict(quota) for quota in found_quotas],
        "equal_workers": [asdict(equal) for equal in found_equal],
    }
