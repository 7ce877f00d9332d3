"""The emulated cluster: devices on their cables, a broker, and a client that measures.

    with Cluster([EmulatedDevice("d0", 0.4), EmulatedDevice("d1", 0.2)]) as cluster:
        cluster.publish(plan, folder)
        print(cluster.run(plan, seconds=10).images_per_s)

The thread that enters it becomes the client: it joins the client's namespace and CPU 1, and so do
the threads that it starts, until it leaves.
"""

import contextlib
import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil

from bench.cluster.devices import (
    HUB_CPU,
    EmulatedDevice,
    RunningDevice,
    Usage,
    check_shares,
    start,
    wait_until_it_listens,
)
from bench.cluster.measure import Arrival, RunFigures, device_figures, rate
from bench.cluster.network import BROKER, CLIENT, Host, inside, network
from bench.cluster.workers import ControlWorkers
from broker.connection import Connector
from broker.embedded import find_mosquitto
from broker.mosquitto_conf import MosquittoSettings, render_mosquitto_conf
from broker.transport import BrokerAddress
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings, random_client_name
from contract.plan import Plan
from planner.publish import Publisher
from shards.manifest import GRAPH_FILE

PORT = 1883
READY_TIMEOUT_S = 60.0
LEAST_WARM_UP_S = 2.0
NICENESS = -15
"""Broker and client stand for machines of their own: nobody else's work may delay them."""


class Cluster:
    """N emulated devices, a broker and this process as the client. Use as a context manager."""

    def __init__(
        self,
        devices: Sequence[EmulatedDevice],
        broker_mbit: float = 1000.0,
        client_mbit: float = 1000.0,
        cluster: str = "default",
    ) -> None:
        """Describe it; entering makes it.

        Raises:
            ValueError: more processor than there is.
        """
        check_shares(devices)
        self.devices = tuple(devices)
        self.cluster = cluster
        self._rates = {BROKER: broker_mbit, CLIENT: client_mbit}
        self._rates |= {device.name: device.rate_mbit for device in devices}
        self._stack = ExitStack()
        self._numbers = itertools.count()
        self.hosts: dict[str, Host] = {}
        self.running: dict[str, RunningDevice] = {}

    def __enter__(self) -> "Cluster":
        with ExitStack() as stack:
            stack.enter_context(pinned(HUB_CPU))
            self.folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="shardline-cluster-"))
            )
            self.folder.chmod(0o755)  # the broker gives up root's rights
            self.shards = self.folder / "shards"
            self.shards.mkdir()
            self.hosts = stack.enter_context(network(self._rates))
            stack.enter_context(inside(self.hosts[CLIENT]))
            self.connect, self._broker = self._start_broker(stack)
            for device in self.devices:
                self.running[device.name] = RunningDevice(
                    device,
                    self.hosts[device.name],
                    str(self.connect.address),
                    self.shards,
                    self.folder / "cache" / device.name,
                    stack,
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def _start_broker(self, stack: ExitStack) -> tuple[Connector, psutil.Process]:
        host = self.hosts[BROKER]
        conf = self.folder / "mosquitto.conf"
        settings = MosquittoSettings(port=PORT, bind_address=host.address)
        conf.write_text(render_mosquitto_conf(settings))
        process = start(host, HUB_CPU, [find_mosquitto(), "-c", str(conf)], stack)
        wait_until_it_listens(host, PORT)
        return Connector(BrokerAddress(host.address, PORT)), psutil.Process(process.pid)

    def publish(self, plan: Plan, folder: Path) -> None:
        """Give a placed plan to the devices and wait until all are ready.

        ``folder`` is the one that `shardline plan` wrote; the devices read it from this disk. They
        load at full speed: only what runs is held to the quota.

        Raises:
            ShardError, DeliveryError: a device cannot load its shard, or is not ready in time.
        """
        named = {replica.device for spot in plan.placement for replica in spot.replicas}
        unknown = named - self.running.keys()
        if unknown or not named:
            raise ValueError(
                f"plan {plan.name} is placed on {', '.join(sorted(named)) or 'no device'}: "
                f"expected devices of this cluster, {', '.join(self.running)}"
            )
        self._forget_shards()
        (self.shards / f"{next(self._numbers)}").symlink_to(folder.resolve())
        for device in self.running.values():
            device.share.release()
        with Publisher(self.connect, self.cluster, "planner") as publisher:
            publisher.publish(plan)
            publisher.wait_until_ready(plan, READY_TIMEOUT_S, lambda _step, _share: None)

    def _forget_shards(self) -> None:
        for link in self.shards.iterdir():
            link.unlink()

    def run(
        self, plan: Plan, seconds: float, window: int | None = None, batch: int | None = None
    ) -> RunFigures:
        """Feed a published plan without a pause and measure ``seconds`` of it, once it is steady.

        Args:
            plan: the published plan.
            seconds: what is measured, after a warm-up of twice the window.
            window: batches in flight; what a client chooses by itself when None.
            batch: images in a batch; the plan's own when None.

        Raises:
            ValueError: fewer than three batches came back in that time.
        """
        images = batch or plan.batch_size
        made_up = made_up_batch(plan, images)
        settings = ClientSettings(random_client_name(), self.cluster, window=window)
        with ExitStack() as stack:
            pipeline = stack.enter_context(Pipeline(settings, self.connect))
            pipeline.open()
            for device in self.running.values():
                device.share.limit()
                stack.callback(device.share.release)
            feed = _Feed(made_up, seconds, warm_up=2 * pipeline.window)
            arrivals: list[Arrival] = []
            before = after = self._usage()
            for ended in pipeline.run(feed):
                if isinstance(ended, BatchResult):
                    arrivals.append(Arrival(time.perf_counter(), ended))
                if feed.begin_after(len(arrivals)):
                    before = self._usage()
                elif feed.is_over() and after[0] <= before[0]:
                    after = self._usage()
            counts = pipeline.counts(finished=True)
        measured = [a for a in arrivals if before[0] <= a.at_s <= after[0]]
        images_per_s, elapsed_s = rate(measured, before[0], images)
        results = [arrival.result for arrival in measured]
        latencies = [result.latency_ms for result in results]
        return RunFigures(
            images_per_s=images_per_s,
            batches=len(results),
            seconds=elapsed_s,
            latency_ms_p50=statistics.median(latencies),
            latency_ms_p95=float(np.percentile(latencies, 95)),
            client_ms=(after[1] - before[1]) / len(results) * 1e3,
            broker_ms=(after[2] - before[2]) / len(results) * 1e3,
            devices=tuple(
                device_figures(
                    replica.device,
                    spot.stage_index,
                    [r for r in results if r.route[spot.stage_index] == replica.device],
                    (before[3][replica.device], after[3][replica.device]),
                    after[0] - before[0],
                    self.running[replica.device].device.quota,
                    self.running[replica.device].resident(),
                )
                for spot in plan.placement
                for replica in spot.replicas
            ),
            retried=counts.retried,
            lost=counts.lost,
        )

    def _usage(self) -> tuple[float, float, float, dict[str, Usage]]:
        """Now, and processor seconds so far: of the client, the broker, and each device."""
        return (
            time.perf_counter(),
            time.process_time(),
            sum(self._broker.cpu_times()[:2]),
            {name: device.usage() for name, device in self.running.items()},
        )

    def control(self, whole: Plan, folder: Path) -> ControlWorkers:
        """Whole-model workers in the devices' own shares, warm and idle: a context manager.

        ``whole`` is a plan of one stage, ``folder`` the one that it lies in.
        """
        return self._workers(whole, folder, [(name, 0) for name in self.running])

    def stages_alone(self, plan: Plan, folder: Path) -> ControlWorkers:
        """Each device's stage of a placed plan as a worker, without messages: a context manager.

        In the order of the placement.
        """
        spots = [(r.device, spot.stage_index) for spot in plan.placement for r in spot.replicas]
        return self._workers(plan, folder, spots)

    def _workers(
        self, plan: Plan, folder: Path, spots: Sequence[tuple[str, int]]
    ) -> ControlWorkers:
        work = []
        for name, index in spots:
            stage = plan.stages[index]
            (spec,) = stage.inputs
            shape = tuple(int(size) for size in spec.shape[1:])
            graph = folder / stage.folder / GRAPH_FILE
            self.running[name].share.release()
            work.append((graph, shape, self.running[name].share))
        return ControlWorkers(work, plan.batch_size)

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Hold every device's share to its quota."""
        for device in self.running.values():
            device.share.limit()
        try:
            yield
        finally:
            for device in self.running.values():
                device.share.release()


class _Feed:
    """The same batch again and again: a warm-up by count, then so many seconds."""

    def __init__(self, batch: Batch, seconds: float, warm_up: int) -> None:
        self._batch, self._seconds, self._warm_up = batch, seconds, warm_up
        self._started = time.perf_counter()
        self._ends: float | None = None

    def __iter__(self) -> Iterator[Batch]:
        while not self.is_over():
            yield self._batch

    def is_over(self) -> bool:
        """Whether the measured time has passed."""
        return self._ends is not None and time.perf_counter() >= self._ends

    def begin_after(self, results: int) -> bool:
        """Begin the measured time if the warm-up is over; whether it begins now."""
        now = time.perf_counter()
        warm = results >= self._warm_up and now - self._started >= LEAST_WARM_UP_S
        if self._ends is not None or not warm:
            return False
        self._ends = now + self._seconds
        return True


def made_up_batch(plan: Plan, images: int) -> Batch:
    """Random bytes of the shape that a plan's first stage takes."""
    generator = np.random.default_rng(0)
    tensors = {
        spec.name: generator.integers(0, 256, (images, *map(int, spec.shape[1:]))).astype(
            spec.dtype
        )
        for spec in plan.stages[0].inputs
    }
    return Batch(tensors, tuple(map(str, range(images))))


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Keep this thread, and those that it starts, on one processor and ahead of others there."""
    thread = threading.get_native_id()
    before, niceness = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, thread)
    os.sched_setaffinity(0, {cpu})
    os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        os.setpriority(os.PRIO_PROCESS, thread, niceness)
