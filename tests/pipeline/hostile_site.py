"""A fleet behind a broker with the rendered users and rights, a pipeline that never stops, and
somebody with a device's credentials who wants it to."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.connection import Connector
from broker.embedded import find_mosquitto
from broker.transport import BrokerAddress, Callbacks, Connection, ConnectionSettings, Delivery
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.activation import BatchId, Header
from contract.errors import NotAuthorisedError
from contract.plan import Plan
from contract.status import Event
from deploy.acl import render_acl
from deploy.credentials import password_file
from deploy.fleet_file import parse_fleet
from stage.agent import StageAgent, StageSettings
from tests.conftest import eventually
from tests.pipeline.fakes import is_answer_of, place_on
from tests.tiny import HEIGHT, WIDTH, make_tiny_plan

CLUSTER = "home"
HONEST, INSIDER, OUTSIDER, THIEF = ("pi-0", "pi-1", "pi-2"), "pi-3", "pi-9", "pi-8"
CLIENT, OTHER_CLIENT, OBSERVER, PLANNER = "client-a", "client-b", "observer", "planner"
DEVICES = (*HONEST, INSIDER, OUTSIDER, THIEF)
FLEET = "\n".join(
    (
        f"cluster: {CLUSTER}",
        "broker: {host: pi-0}",
        "devices:",
        *(f"  - {{name: {d}, address: {d}.lan, kind: raspberry-pi-4}}" for d in DEVICES),
        f"clients: [{CLIENT}, {OTHER_CLIENT}]",
    )
)
ROUTE = HONEST


@contextmanager
def guarded_broker(folder: Path) -> Iterator["Ground"]:
    """Mosquitto with the access rights and the users of the fleet, its log at its most talkative:
    refused messages are in no other."""
    fleet = parse_fleet(FLEET, "the fleet of this test")
    passwords = {user: f"secret-of-{user}" for user in fleet.users}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (folder / "acl").write_text(render_acl(fleet))
    (folder / "passwords").write_text(password_file(passwords))
    lines = [
        f"listener {port} 127.0.0.1",
        "allow_anonymous false",
        f"password_file {folder / 'passwords'}",
        f"acl_file {folder / 'acl'}",
        "use_username_as_clientid true",
        "set_tcp_nodelay true",
        "queue_qos0_messages false",
        "max_packet_size 16777216",
        "log_dest stderr",
        "log_type all",
    ]
    if os.geteuid() == 0:
        lines.append("user root")  # it would give up root, and the files of the test are root's
    (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    for name in ("acl", "passwords"):
        (folder / name).chmod(0o600)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [find_mosquitto(), "-c", str(folder / "mosquitto.conf")], stdout=log, stderr=log
        )
    try:
        eventually(lambda: _accepts(port) or process.poll() is not None, "the broker accepts")
        assert process.poll() is None, (folder / "log").read_text()
        yield Ground(port, passwords, folder / "log")
    finally:
        process.terminate()
        process.wait(timeout=10)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Ground:
    """How users of the fleet reach the broker, and what it has written down."""

    def __init__(self, port: int, passwords: dict[str, str], log: Path) -> None:
        self._port, self._passwords, self._log = port, passwords, log

    def connector(self, user: str) -> Connector:
        return Connector(BrokerAddress("127.0.0.1", self._port, user, self._passwords[user]))

    def log(self) -> str:
        return self._log.read_text(errors="replace")


class Peer:
    """One user with a client in its own hands: what it hears, and what the broker lets it say."""

    def __init__(self, ground: Ground, user: str, client_id: str | None = None) -> None:
        self.heard: list[Delivery] = []
        self.connection: Connection = ground.connector(user)(
            ConnectionSettings(name=client_id or user), Callbacks(on_delivery=self._hear)
        )

    def _hear(self, delivery: Delivery) -> None:
        self.heard.append(delivery)
        delivery.ack()

    def may(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> bool:
        """Publish at QoS 1; whether the broker let it."""
        try:
            self.connection.publish(topic, payload, retain=retain).result(timeout=10)
        except NotAuthorisedError:
            return False
        return True

    def flood(self, topic: str, payload: bytes, count: int, qos: int = 0) -> None:
        sent = [self.connection.publish(topic, payload, qos=qos) for _ in range(count)]
        for future in sent:
            future.exception(timeout=30)

    def close(self) -> None:
        self.connection.close(forget_session=True)


class Traffic:
    """A client that feeds batches without end and judges each answer."""

    def __init__(self, ground: Ground) -> None:
        self.pipeline = Pipeline(
            ClientSettings(name=CLIENT, cluster=CLUSTER, ready_timeout_s=20, window=6),
            ground.connector(CLIENT),
        )
        self.delivered = self.wrong = self.dead = 0
        self.error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")

    def start(self) -> None:
        self.pipeline.open()
        self._thread.start()

    def _batches(self) -> Iterator[Batch]:
        generator = np.random.default_rng(3)
        while not self._stopping.is_set():
            pixels = generator.integers(0, 256, (2, 1, HEIGHT, WIDTH), dtype=np.uint8)
            yield Batch({"image": pixels}, ("a", "b"))
            time.sleep(0.002)  # two processors are shared by all of this

    def _run(self) -> None:
        try:
            for end in self.pipeline.run(self._batches()):
                if isinstance(end, BatchResult):
                    self.delivered += 1
                    self.wrong += not is_answer_of(end)
                else:
                    self.dead += 1
        except BaseException as error:  # noqa: BLE001 the test is told
            self.error = error

    def goes_on(self, count: int = 40) -> None:
        """So many further batches are answered, all rightly, and none was given up."""
        goal = self.delivered + count
        eventually(lambda: self.delivered >= goal or self.error, f"{count} more results", 60)
        assert self.error is None
        assert (self.wrong, self.dead) == (0, 0)

    def end(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        counts = self.pipeline.counts(finished=True)
        self.pipeline.close()
        assert self.error is None
        assert (counts.lost, counts.dead, self.wrong) == (0, 0, 0)
        assert counts.delivered == counts.submitted == self.delivered


class HostileSite:
    """The honest part of the fleet at work, and what the observer is told."""

    def __init__(self, folder: Path, ground: Ground) -> None:
        self.folder, self.ground = folder, ground
        plan = make_tiny_plan(folder, devices=HONEST, cluster=CLUSTER)
        self.plan: Plan = place_on(plan, [HONEST[0], [HONEST[1], INSIDER], HONEST[2]], CLUSTER)
        self.observer = Peer(ground, OBSERVER)
        self.observer.connection.subscribe(topics.event_filter(CLUSTER))
        planner = Peer(ground, PLANNER)
        assert planner.may(topics.plan_topic(CLUSTER), self.plan.to_message().encode(), retain=True)
        planner.close()  # a user is one connection: tests have their own planner
        self._agents = [self._agent(device) for device in HONEST]
        self._threads = [threading.Thread(target=agent.run) for agent in self._agents]
        for thread in self._threads:
            thread.start()
        self.traffic = Traffic(ground)
        self.traffic.start()

    def _agent(self, device: str) -> StageAgent:
        settings = StageSettings(
            device=device,
            shards_dir=self.folder,
            cluster=CLUSTER,
            cache_dir=self.folder / f"cache-{device}",
            connect_timeout_s=10,
        )
        return StageAgent(settings, self.ground.connector(device))

    def close(self) -> None:
        try:
            self.traffic.end()
        finally:
            for agent in self._agents:
                agent.stop()
            for thread in self._threads:
                thread.join(timeout=10)
            self.observer.close()

    def events(self, sender: str) -> list[str]:
        """What a process has reported, as an observer sees it."""
        told = []
        for delivery in list(self.observer.heard):
            if topics.parse_topic(delivery.topic).sender == sender:
                told.append(Event.model_validate_json(delivery.payload).detail)
        return told

    def told(self, sender: str, words: str) -> None:
        """Wait until a process has reported something with these words."""
        eventually(
            lambda: any(words in detail for detail in self.events(sender)),
            f"{sender} reports «{words}», not only {self.events(sender)[-3:]}",
            20,
        )

    def header(self, stage_index: int, **changes: object) -> Header:
        """Of a batch that is on its way, as who knows the client's epoch could write it."""
        ledger = self.traffic.pipeline._ledger
        good = Header(
            plan_id=self.plan.plan_id,
            batch_id=BatchId(ledger.epoch, max(0, self.newest() - 3)),  # one that there is
            attempt=0,
            low=0,
            stage_index=stage_index,
            route=ROUTE,
            client=CLIENT,
            sent_us=1,
        )
        return replace(good, **changes)  # type: ignore[arg-type]

    def newest(self) -> int:
        """The number of a batch that is in flight, or was a moment ago."""
        return self.traffic.delivered + self.traffic.dead + 2

    def rejected(self) -> int:
        return self.traffic.pipeline.rejected


def refused_in(log: str, user: str, topic: str) -> bool:
    """Whether the broker has written down that it did not let a user publish on a topic."""
    return any("Denied PUBLISH from " + user in line and topic in line for line in log.splitlines())
