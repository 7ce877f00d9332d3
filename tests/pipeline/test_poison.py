"""A batch that kills whoever computes it is dead after two deaths; all others have an answer."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from client.batch import Batch, DeathReason
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.plan import Plan
from tests.conftest import StartStage
from tests.pipeline.deadly_stage import DEADLY
from tests.pipeline.fakes import Run, make_batches, publish_plan
from tests.tiny import HEIGHT, WIDTH, make_tiny_plan


class Supervised:
    """A stage process that is started again whenever it dies, as a container is."""

    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "tests.pipeline.deadly_stage", "stage", *arguments]
        self.deaths = 0
        self._ending = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _supervise(self) -> None:
        while True:
            status = self._process.wait()
            if self._ending.is_set():
                return
            self.deaths += status == -9
            self._process = self._start()

    def end(self) -> None:
        self._ending.set()
        self._process.terminate()
        self._thread.join(timeout=15)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join(timeout=5)


@pytest.fixture
def devices(unique: str) -> tuple[str, ...]:
    return tuple(f"pi-{index}-{unique}" for index in range(3))


@pytest.fixture
def plan(tmp_path: Path, devices: tuple[str, ...], cluster: str) -> Plan:
    return make_tiny_plan(tmp_path, devices=devices, cluster=cluster)


@pytest.fixture
def first(
    tmp_path: Path, shared_broker: EmbeddedBroker, devices: tuple[str, ...], cluster: str
) -> Iterator[Supervised]:
    process = Supervised(
        *("--device", devices[0], "--shards", str(tmp_path), "--cluster", cluster),
        *("--broker", str(shared_broker.address), "--engine", "identity", "--threads", "1"),
        *("--cache", str(tmp_path / "cache")),
    )
    yield process
    process.end()


def deadly(batch: Batch) -> Batch:
    white = np.full((2, 1, HEIGHT, WIDTH), DEADLY, np.uint8)
    return Batch({"image": white}, batch.names)


def test_a_batch_that_kills_its_stage_is_dead_and_the_others_are_not(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    first: Supervised,
    start_stage: StartStage,
) -> None:
    for device in devices[1:]:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    batches = make_batches(30)
    batches[12] = deadly(batches[12])
    settings = ClientSettings(f"client-{unique}", cluster, ready_timeout_s=30)
    with Pipeline(settings, connect) as pipeline:
        pipeline.open()
        run = Run(pipeline, batches).go()
        run.keeps_the_promise(dead=1)
    [dead] = run.dead
    assert dead.batch_id.seq == 12
    assert dead.reason is DeathReason.POISON
    assert "died 2 times" in dead.detail
    assert first.deaths == 2
