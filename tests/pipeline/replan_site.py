"""A planner service with its plan, devices that a test takes away, and a client that is judged."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from broker.connection import Connector
from broker.transport import BrokerAddress, Connect
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.plan import Plan, parse_plan
from contract.status import DeviceState, Event, EventKind, parse_status
from planner.formulate import Site
from planner.graph import SegmentedGraph
from planner.problem import DeviceCosts, RelayCosts
from planner.profiler import Profile
from planner.watch.family import Family
from planner.watch.notice import Notice, NoticeKind
from planner.watch.replanner import Replanner, SiteOfFile
from planner.watch.service import PlannerService, WatchSettings
from stage.agent import StageAgent, StageSettings
from tests.conftest import eventually
from tests.pipeline.fakes import Run, make_batches, place_on
from tests.planner.layered import build_layered
from tests.stage.harness import Listener

GRACE_S = 1.0


class Device:
    """An agent in a thread, each time with the same disk."""

    def __init__(self, name: str, folder: Path, cluster: str, connect: Connect) -> None:
        self.name, self._connect = name, connect
        self._settings = StageSettings(
            device=name,
            shards_dir=folder / "nothing",
            cluster=cluster,
            connect_timeout_s=10,
            cache_dir=folder / "disks" / name,
        )
        self.start()

    @property
    def disk(self) -> Path:
        return self._settings.cache_folder

    def start(self) -> None:
        self._agent = StageAgent(self._settings, self._connect)
        self._thread = threading.Thread(target=self._agent.run, name=self.name)
        self._thread.start()

    def stop(self) -> None:
        self._agent.stop()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()


class ProcessDevice:
    """`python -m shardline stage` as a child process, which can be killed."""

    def __init__(self, name: str, folder: Path, cluster: str, broker: BrokerAddress) -> None:
        self.name = name
        self._command = [sys.executable, "-m", "shardline", "stage", "--device", name]
        self._command += ["--shards", str(folder / "nothing"), "--broker", str(broker)]
        self._command += ["--cluster", cluster, "--cache", str(folder / "disks" / name)]
        self._command += ["--threads", "1"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.kill()


class Ground:
    """A broker's cluster with devices, a built plan, and services one after the other."""

    def __init__(
        self, folder: Path, cluster: str, unique: str, address: BrokerAddress, devices: int = 3
    ) -> None:
        self.folder, self.cluster, self.unique, self.address = folder, cluster, unique, address
        self.connect = Connector(address)
        self.names = [f"pi-{index}-{unique}" for index in range(devices)]
        self.built = build_layered(folder / "built")
        self.plan_folder = folder / "built" / self.built.name
        self.devices: dict[str, Device | ProcessDevice] = {}
        self.notices: list[Notice] = []
        self.observer = Listener(
            self.connect,
            f"seer-{unique}",
            topics.plan_topic(cluster),
            topics.event_filter(cluster),
            topics.status_filter(cluster),
        )
        self._service: PlannerService | None = None
        self._thread: threading.Thread | None = None

    def start_devices(self, *names: str, killable: str = "") -> None:
        for name in names or self.names:
            if name == killable:
                device: Device | ProcessDevice = ProcessDevice(
                    name, self.folder, self.cluster, self.address
                )
            else:
                device = Device(name, self.folder, self.cluster, self.connect)
            self.devices[name] = device
        eventually(lambda: set(names or self.names) <= self._online(), "the devices are online")

    def _online(self) -> set[str]:
        statuses = self.observer.payloads("status", parse_status)
        return {its.device for its in statuses if its.state is DeviceState.ONLINE}

    def placed(self, *devices: "str | list[str]") -> Plan:
        return place_on(self.built, list(devices or self.names[:3]), self.cluster)

    def serve(
        self,
        wanted: Plan | None = None,
        sites: SiteOfFile | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        family = Family(self.plan_folder, self.built)
        settings = WatchSettings(
            name=f"planner-{self.unique}",
            cluster=self.cluster,
            wanted=wanted,
            grace_s=grace_s,
            patience_s=20.0,
        )
        self._service = PlannerService(
            settings,
            family,
            Replanner(family, self.cluster, site_of_file=sites),
            self.connect,
            self.notices.append,
        )
        self._thread = threading.Thread(target=self._service.run, name="planner")
        self._thread.start()

    def end_service(self) -> None:
        if self._service is not None and self._thread is not None:
            self._service.stop()
            self._thread.join(timeout=30)
            assert not self._thread.is_alive()
            self._service = self._thread = None

    def told(self, kind: NoticeKind) -> list[Notice]:
        return [notice for notice in list(self.notices) if notice.kind is kind]

    def wait_for(self, kind: NoticeKind, count: int = 1, timeout_s: float = 60.0) -> Notice:
        def enough() -> bool:
            return len(self.told(kind)) >= count

        try:
            eventually(enough, f"{count} x {kind}", timeout_s)
        except pytest.fail.Exception as error:
            told = "\n".join(map(str, self.notices))
            pytest.fail(f"{error}; told:\n{told}")
        return self.told(kind)[count - 1]

    @property
    def published(self) -> Plan:
        """What stands on the plan topic, as an observer heard it last."""
        return parse_plan(self.observer.of("plan")[-1].payload, "the plan topic")

    def events(self, kind: EventKind) -> list[str]:
        events = self.observer.payloads("event", Event.model_validate_json)
        return [e.detail for e in events if e.kind is kind and e.sender.startswith("planner")]

    def client(self, name: str = "client") -> Pipeline:
        settings = ClientSettings(
            name=f"{name}-{self.unique}", cluster=self.cluster, ready_timeout_s=60.0
        )
        return Pipeline(settings, self.connect)

    def runs(self, count: int = 30, after: Callable[[int], None] = lambda _ended: None) -> None:
        """Feed batches: every one ends with one right result."""
        with self.client() as pipeline:
            pipeline.open()
            Run(pipeline, make_batches(count)).go(after).keeps_the_promise()

    def close(self) -> None:
        try:
            self.end_service()
        finally:
            for device in self.devices.values():
                device.stop()
            self.observer.close()


def limited_sites(names: Mapping[str, int | None]) -> SiteOfFile:
    """Equal devices with so much memory for weights, in bytes; messages cost next to nothing."""

    def site(graph: SegmentedGraph, profile: Profile) -> Site:
        free = RelayCosts(1e-6, 0.0)
        devices = tuple(
            DeviceCosts(
                name,
                profile.segment_ms,
                free,
                memory_bytes=None if limit is None else limit + 8_000,
                base_bytes=0,
                packing_factor=100.0,
            )
            for name, limit in names.items()
        )
        return Site(devices, "a test")

    return site
