"""A slow stage, a stopped one, a hung broker, a full queue: memory stays flat, nothing is lost."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import broker.embedded
import client.retry
from broker.connection import Connector, PahoConnection
from broker.embedded import EmbeddedBroker
from broker.mosquitto_conf import (
    MAX_QUEUED_MESSAGES,
    FleetBrokerSettings,
    MosquittoSettings,
    render_fleet_conf,
    render_mosquitto_conf,
)
from broker.transport import Connect
from client.batch import Batch
from client.pipeline import Pipeline
from client.settings import MAX_WINDOW, QUEUED_FOR_EACH_IN_FLIGHT, ClientSettings
from contract import topics
from contract.activation import Activation
from contract.errors import SettingsError
from contract.status import Event, EventKind
from tests.conftest import StartStage, eventually
from tests.pipeline.fakes import FakeDevice, Run, make_batches, publish_plan
from tests.pipeline.test_process_faults import StageProcess
from tests.stage.harness import Listener
from tests.tiny import HEIGHT, WIDTH, make_tiny_plan

IMAGES = 4000
"""In a batch: its first activation has 256 KB, so that hoarding a hundred of them would show."""
FLAT_BYTES = 24_000_000


class Site:
    """Two stages in threads, and a last one whose pace the test sets."""

    def __init__(
        self, folder: Path, connect: Connect, cluster: str, unique: str, start: StartStage
    ) -> None:
        self.connect, self.cluster, self.unique, self.folder = connect, cluster, unique, folder
        self.devices = tuple(f"pi-{index}-{unique}" for index in range(3))
        self.plan = make_tiny_plan(folder, devices=self.devices, cluster=cluster, batch_size=IMAGES)
        self._start = start
        self._closing: list[Any] = []

    def open(self, pause_s: float, window: int) -> Pipeline:
        def behave(fake: FakeDevice, activation: Activation) -> None:
            time.sleep(pause_s)
            fake.answer(activation)

        for device in self.devices[:2]:
            self._start(device, self.folder, connect=self.connect)
        self._closing.append(
            FakeDevice(self.connect, self.cluster, self.plan, self.devices[2], behave)
        )
        return self.client(window)

    def client(self, window: int) -> Pipeline:
        publish_plan(self.connect, self.plan, self.cluster)
        settings = ClientSettings(
            f"client-{self.unique}", self.cluster, window=window, ready_timeout_s=15
        )
        pipeline = Pipeline(settings, self.connect)
        self._closing.append(pipeline)
        pipeline.open()
        return pipeline

    def close(self) -> None:
        for thing in reversed(self._closing):
            thing.close()


@pytest.fixture
def site(
    tmp_path: Path, own_broker: EmbeddedBroker, cluster: str, unique: str, start_stage: StartStage
) -> Iterator[Site]:
    site = Site(tmp_path, Connector(own_broker.address), cluster, unique, start_stage)
    yield site
    site.close()


class Source:
    """Batches without end to a client that would take them; counts those that were taken."""

    def __init__(self, count: int) -> None:
        self._count, self.taken = count, 0

    def __iter__(self) -> Iterator[Batch]:
        generator = np.random.default_rng(0)
        for index in range(self._count):
            self.taken += 1
            images = generator.integers(0, 256, (IMAGES, 1, HEIGHT, WIDTH), dtype=np.uint8)
            yield Batch({"image": images}, (str(index),) * IMAGES)


def rss_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def test_a_slow_stage_holds_the_client_back_and_memory_stays_flat(
    site: Site, own_broker: EmbeddedBroker
) -> None:
    pipeline = site.open(pause_s=0.01, window=6)
    source = Source(400)
    ended, ahead = 0, []
    sizes: list[tuple[int, int]] = []
    for _end in pipeline.run(source):
        ended += 1
        ahead.append(source.taken - ended)
        if ended in (100, 400):
            sizes.append((rss_bytes(os.getpid()), rss_bytes(own_broker.pid)))
    assert ended == 400
    assert max(ahead) <= 6 + 1  # one may be in the client's hands
    (ours, mosquitto), (ours_later, mosquitto_later) = sizes
    assert ours_later - ours < FLAT_BYTES  # 300 batches of 256 KB went through meanwhile, twice
    assert mosquitto_later - mosquitto < FLAT_BYTES
    counts = pipeline.counts(finished=True)
    assert (counts.delivered, counts.lost, counts.dead) == (400, 0, 0)


def test_a_stopped_stage_blocks_the_client_and_goes_on_where_it_was(
    site: Site, own_broker: EmbeddedBroker
) -> None:
    for device in (site.devices[0], site.devices[2]):
        site._start(device, site.folder, connect=site.connect)
    middle = StageProcess(site.devices[1], site.folder, own_broker.address, site.cluster)
    try:
        pipeline = site.client(window=6)
        source = Source(120)
        frozen: list[tuple[int, int, int]] = []

        def look() -> None:
            frozen.append((source.taken, rss_bytes(os.getpid()), rss_bytes(own_broker.pid)))

        def stop_for_a_while() -> None:
            os.kill(middle.process.pid, signal.SIGSTOP)
            time.sleep(1.5)
            look()
            time.sleep(3.0)  # longer than the first deadline: copies are sent, but few
            look()
            os.kill(middle.process.pid, signal.SIGCONT)

        ended = 0
        stopper = threading.Thread(target=stop_for_a_while)
        for _end in pipeline.run(source):
            ended += 1
            if ended == 40:
                stopper.start()
        stopper.join()
        assert ended == 120
        (taken, ours, mosquitto), (taken_later, ours_later, mosquitto_later) = frozen
        assert taken == taken_later <= 40 + 3 * 6 + 1  # what was under way came through, no more
        assert ours_later - ours < FLAT_BYTES
        assert mosquitto_later - mosquitto < FLAT_BYTES
        counts = pipeline.counts(finished=True)
        assert (counts.delivered, counts.lost, counts.dead) == (120, 0, 0)
    finally:
        middle.kill()


def test_a_hung_broker_gets_no_second_copy_of_what_it_has_not_taken(
    site: Site, own_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.retry, "MIN_DEADLINE_S", 0.5)
    window = 6
    pipeline = site.open(pause_s=0.0, window=window)
    connection = pipeline._connection.main
    assert isinstance(connection, PahoConnection)
    waiting: list[int] = []

    def hang() -> None:
        os.kill(own_broker.pid, signal.SIGSTOP)
        for _ in range(50):  # several deadlines
            time.sleep(0.1)
            waiting.append(connection._outbox.waiting_bytes)
        os.kill(own_broker.pid, signal.SIGCONT)

    hanger = threading.Thread(target=hang)
    ended = 0
    for _end in pipeline.run(Source(150)):
        ended += 1
        if ended == 100:
            hanger.start()
    hanger.join()
    assert ended == 150
    input_bytes = IMAGES * HEIGHT * WIDTH + 2000
    assert max(waiting) <= window * input_bytes
    counts = pipeline.counts(finished=True)
    assert (counts.delivered, counts.lost, counts.dead) == (150, 0, 0)


@pytest.fixture
def small_queues(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    """A broker that queues five messages for a receiver, and tells every second what it dropped."""

    def render(settings: MosquittoSettings) -> str:
        text = render_mosquitto_conf(settings.model_copy(update={"max_queued_messages": 5}))
        return text.replace("sys_interval 10", "sys_interval 1")

    monkeypatch.setattr(broker.embedded, "render_mosquitto_conf", render)
    with EmbeddedBroker() as running:
        yield running


def test_what_a_full_queue_drops_is_told_and_sent_again(
    tmp_path: Path,
    small_queues: EmbeddedBroker,
    cluster: str,
    unique: str,
    start_stage: StartStage,
) -> None:
    """Mosquitto answers each of them with success."""
    connect = Connector(small_queues.address)
    site = Site(tmp_path, connect, cluster, unique, start_stage)
    events = Listener(connect, f"observer-{unique}", topics.event_filter(cluster))
    try:
        pipeline = site.open(pause_s=0.05, window=35)
        Run(pipeline, make_batches(5)).go()  # so that latencies are known, and deadlines short
        batches = make_batches(40)
        ends = list(pipeline.run(batches))
        assert sorted(end.batch_id.seq for end in ends) == list(range(5, 45))
        counts = pipeline.counts(finished=True)
        assert (counts.delivered, counts.lost, counts.dead) == (45, 0, 0)
        assert counts.retried > 0

        def told() -> list[Event]:
            heard = events.payloads("event", Event.model_validate_json)
            return [event for event in heard if event.kind is EventKind.MESSAGES_DROPPED]

        eventually(told, "the drops are told")
        assert "max_queued_messages" in told()[0].detail
        assert told()[0].sender == f"client-{unique}"
    finally:
        site.close()
        events.close()


def test_the_window_leaves_room_in_the_broker_s_queues() -> None:
    for text in (
        render_fleet_conf(FleetBrokerSettings()),
        render_mosquitto_conf(MosquittoSettings(port=1)),
    ):
        assert f"max_queued_messages {MAX_QUEUED_MESSAGES}\n" in text
    assert MAX_QUEUED_MESSAGES >= QUEUED_FOR_EACH_IN_FLIGHT * MAX_WINDOW
    ClientSettings("c", window=MAX_WINDOW)
    with pytest.raises(SettingsError, match="expected 1 to 166"):
        ClientSettings("c", window=MAX_WINDOW + 1)
