"""A real pipeline, small enough for a trial of a second: a Mosquitto, stage processes, a client.

The tiny plan of three stages is computed by onnxruntime in `shardline stage` processes that the
launcher starts; the client is `client.pipeline.Pipeline` in this process. One site serves many
trials: only one that hung is torn down.
"""

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cluster.network import BROKER, CLIENT, Host, inside, network
from broker.connection import Connector
from broker.mosquitto_conf import MosquittoSettings, render_mosquitto_conf
from broker.transport import BrokerAddress, Connect
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.plan import Plan
from planner.publish import Publisher
from tests.faults import client_patches
from tests.faults.patching import Context, apply
from tests.faults.processes import Broker, Child, Supervisor, free_port, stage_command
from tests.faults.proxy import Proxy
from tests.faults.triggers import Triggers
from tests.pipeline.fakes import place_on
from tests.tiny import make_tiny_plan

if TYPE_CHECKING:
    from tests.faults.secured import Credentials

CLUSTER = "faults"
FEEDER, PLANNER = "feeder", "planner"
ALL = "*"
READY_LIMIT_S = 120.0
CLOSE_LIMIT_S = 5.0
LINK_MBIT = 1000.0


@dataclass(frozen=True)
class Setup:
    """What a row needs. Patches by device; ``ALL`` is every device.

    ``patience_s``: a trial without a result for so long has hung. ``conf``: changes to the rendered
    configuration of the broker. ``through_proxy``: who reaches the broker by a proxy of its own.
    ``one_client``: one client for all trials, not one (a new epoch) for each. ``secured``: mutual
    TLS and an access list. ``full_length``: the product's own times, not scaled ones.
    """

    devices: tuple[tuple[str, ...], ...] = (("pi-0",), ("pi-1",), ("pi-2",))
    restarts: bool = True
    window: int = 12
    slow_ms: float = 2.0
    stage_patches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    client_patches: tuple[str, ...] = ()
    conf: Callable[[str, Path], str] = lambda text, _folder: text
    entry_point: Callable[[Path], Path] | None = None
    through_proxy: tuple[str, ...] = ()
    in_namespaces: bool = False
    secured: bool = False
    full_length: bool = False
    plan_seeds: tuple[int, ...] = (0,)
    one_client: bool = True
    batch_timeout_s: float | None = None
    patience_s: float = 30.0
    least_batches: int = 60
    stage_before: Callable[["Site", str], list[str]] = lambda _site, _device: []
    stage_environment: Callable[["Site", str], dict[str, str]] = lambda _site, _device: {}
    furnish: Callable[["Site", ExitStack], None] = lambda _site, _stack: None


def with_patches(patches: Mapping[str, tuple[str, ...]], *more: str) -> dict[str, tuple[str, ...]]:
    """Further patches for every device."""
    return {**patches, ALL: (*patches.get(ALL, ()), *more)}


def lossy(is_control: bool, **settings: Any) -> Setup:
    """For faults that redelivery and retries cover: the control has neither."""
    if is_control:
        patches = settings.get("stage_patches", {})
        settings["stage_patches"] = with_patches(patches, "acknowledge_at_receipt")
        settings["client_patches"] = ("no_retry",)
        settings["patience_s"] = 3.0
    return Setup(**settings)


class Site:
    """A pipeline under test. Use as a context manager, from one thread."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.setup, self.folder = setup, folder
        self.shards = folder / "shards"
        self.triggers = Triggers(folder / "triggers")
        self.proxies: dict[str, Proxy] = {}
        self.hosts: dict[str, Host] = {}
        self.credentials: Credentials | None = None
        self.stages: dict[str, Child] = {}
        self.is_broken = False
        self._stack = ExitStack()
        self._pipeline: Pipeline | None = None
        self._clients = 0

    @property
    def devices(self) -> list[str]:
        return [device for group in self.setup.devices for device in group]

    @property
    def pipeline(self) -> Pipeline:
        assert self._pipeline is not None
        return self._pipeline

    def __enter__(self) -> "Site":
        with ExitStack() as stack:
            for name in ("triggers", "data"):
                (self.folder / name).mkdir()
            self.shards.mkdir()
            if self.setup.in_namespaces:
                rates = dict.fromkeys((BROKER, CLIENT, *self.devices), LINK_MBIT)
                self.hosts = stack.enter_context(network(rates))
                stack.enter_context(inside(self.hosts[CLIENT]))
            if self.setup.secured:
                self._secure()
            self._patch_this_process(stack)
            self.plans = [self._make_plan(seed) for seed in self.setup.plan_seeds]
            self.plan = self.plans[0]
            self._start_broker(stack)
            for name in self.setup.through_proxy:
                self.proxies[name] = Proxy("127.0.0.1", self.broker.port)
                stack.callback(self.proxies[name].close)
            self.setup.furnish(self, stack)
            for device in self.devices:
                self._start_stage(device, stack)
            self.supervisor = Supervisor(self.stages, [self.broker])
            stack.callback(self.supervisor.close)
            if not self.setup.restarts:
                self.supervisor.left_dead.update(self.devices)
            self.publish()
            self.open_client()
            stack.callback(self.close_client)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def _patch_this_process(self, stack: ExitStack) -> None:
        context = Context("client", self.triggers, stack)
        if not self.setup.full_length:
            client_patches.scale_times(context)
        apply(context, self.setup.client_patches)

    def _make_plan(self, seed: int) -> Plan:
        name = f"tiny-{seed}"
        plan = make_tiny_plan(self.shards, seed=seed, name=name, devices=(), cluster=CLUSTER)
        return place_on(plan, self.setup.devices, CLUSTER)

    def _secure(self) -> None:
        from tests.faults.secured import Credentials, access_list

        self.credentials = Credentials(self.folder / "credentials", CLUSTER)
        (self.folder / "acl").write_text(access_list(CLUSTER, self.devices, FEEDER))

    def _conf(self, host: str, port: int) -> str:
        secured: dict[str, Any] = {}
        if self.credentials is not None:
            secured = {"tls": self.credentials.listener(), "acl_file": str(self.folder / "acl")}
        text = render_mosquitto_conf(MosquittoSettings(port=port, bind_address=host, **secured))
        text = self.setup.conf(text.replace("sys_interval 10", "sys_interval 1"), self.folder)
        if os.geteuid() == 0:
            text += "user root\n"  # changing the user would clear the signal of our death
        return text

    # The broker

    def _start_broker(self, stack: ExitStack) -> None:
        host = self.hosts[BROKER].address if self.hosts else "127.0.0.1"
        port = free_port()
        entry_point = self.setup.entry_point
        self.broker = Broker(
            self.folder,
            self._conf(host, port),
            host,
            port,
            self.hosts[BROKER].command([]) if self.hosts else (),
            entry_point(self.folder) if entry_point else None,
        )
        stack.callback(self.broker.kill)
        self.start_broker()

    def start_broker(self) -> None:
        """Start it, again after its death, and wait until it accepts connections."""
        self.broker.start()
        self.broker.wait_until_it_accepts(lambda where: socket.create_connection(where, 0.5))

    def address(self, name: str | None = None) -> BrokerAddress:
        """Where ``name`` finds the broker, and with what; directly when it has no proxy."""
        proxy = self.proxies.get(name or "")
        where = BrokerAddress(self.broker.host, proxy.port if proxy else self.broker.port)
        if self.credentials is None:
            return where
        user = FEEDER if name == "client" else name or PLANNER
        return replace(where, username=user, tls=self.credentials.of(user))

    def connect(self, name: str | None = None) -> Connect:
        """Connections of the harness' own, or as ``name`` would make them."""
        return Connector(self.address(name))

    # The stages

    def _start_stage(self, device: str, stack: ExitStack) -> None:
        patches = [f"slow:{self.setup.slow_ms:g}"]
        for whose in (ALL, device):
            patches += self.setup.stage_patches.get(whose, ())
        self.stages[device] = child = Child(
            stage_command(self.told(device, patches), device, self._stage_options(device)),
            self.folder / f"{device}.log",
            [
                *self.setup.stage_before(self, device),
                *(self.hosts[device].command([]) if self.hosts else []),
            ],
            **self.setup.stage_environment(self, device),
        )
        stack.callback(child.kill)
        child.start()

    def _stage_options(self, device: str) -> list[str]:
        address = self.address(device)
        options = ["--cluster", CLUSTER, "--broker", str(address), "--shards", str(self.shards)]
        options += ["--cache", str(self.folder / "cache" / device)]
        if self.credentials is not None:
            files = self.credentials.of(device)
            options += ["--ca-file", str(files.ca_file), "--cert-file", str(files.cert_file)]
            options += ["--key-file", str(files.key_file)]
        return options

    def told(self, name: str, patches: list[str]) -> str:
        """What the launcher of a process is told."""
        folder = str(self.triggers.folder)
        told = {"name": name, "folder": folder, "patches": patches}
        return json.dumps(told | {"full_length": self.setup.full_length})

    def publish(self, plan: Plan | None = None) -> None:
        """What the planner does, again after the broker lost it: publish, wait until all is ready.

        Raises:
            ShardlineError: the devices do not become ready.
        """
        self.plan = plan or self.plan
        with Publisher(self.connect(), CLUSTER, PLANNER) as publisher:
            publisher.publish(self.plan)
            publisher.wait_until_ready(self.plan, READY_LIMIT_S, lambda _step, _share: None)

    def wait_until_ready(self) -> None:
        """Until every device serves its stage of the plan."""
        with Publisher(self.connect(), CLUSTER, PLANNER) as publisher:
            publisher.wait_until_ready(self.plan, READY_LIMIT_S, lambda _step, _share: None)

    # The client

    def open_client(self) -> Pipeline:
        """A new client: a new epoch."""
        self.close_client()
        settings = ClientSettings(
            FEEDER,
            cluster=CLUSTER,
            window=self.setup.window,
            ready_timeout_s=READY_LIMIT_S,
            batch_timeout_s=self.setup.batch_timeout_s,
        )
        self._pipeline = Pipeline(settings, self.connect("client"))
        self._pipeline.open()
        return self._pipeline

    def close_client(self) -> None:
        """Forget it, with its session. One that hangs is left to its threads: they are daemons."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        if not self.is_broken:
            pipeline.close()
            return
        for proxy in self.proxies.values():
            proxy.reset()
        closing = threading.Thread(target=pipeline.close, daemon=True)
        closing.start()
        closing.join(timeout=CLOSE_LIMIT_S)

    # Between two trials

    def prepare(self) -> None:
        """Everything as it was before the last trial."""
        self.triggers.forget_all()
        for child in self.stages.values():
            child.peak_bytes = 0
        self.broker.peak_bytes = 0
        self.wait_until_ready()
        if not self.setup.one_client:
            self.open_client()

    def computes(self) -> list[str]:
        """What the stages computed since they were first started, one line a run."""
        files = sorted(self.triggers.folder.glob("computes.*"))
        return [line for file in files for line in file.read_text().splitlines()]
