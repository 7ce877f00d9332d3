"""SIGKILL of a real stage process in the middle of texts: they read as if nothing had happened."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from client.batch import Tokens
from client.generation.pipeline import TokenPipeline
from client.settings import ClientSettings
from tests.generation.test_generate_end_to_end import SHAPE, Fleet, batches, texts
from tests.hand_decoder import make_hand_plan
from tests.pipeline.fakes import place_on, publish_plan
from tests.pipeline.test_process_faults import StageProcess

SAMPLINGS = [{}, {"temperature": 1.5, "top_p": 0.9, "seed": 3}]


class ProcessFleet(Fleet):
    """The fleet of the end-to-end test, each device a process of its own."""

    def __init__(self, folder: Path, broker: EmbeddedBroker, cluster: str, unique: str) -> None:
        self.names = [f"{name}-{unique}" for name in ("a", "b", "b2", "c")]
        a, b, b2, c = self.names
        built = make_hand_plan(folder, cluster=cluster, shape=SHAPE, end_tokens=(), sequences=6)
        self.plan = place_on(built, [a, (b, b2), c], cluster)
        self.processes = {
            name: StageProcess(name, folder, broker.address, cluster) for name in self.names
        }
        connect = Connector(broker.address)
        publish_plan(connect, self.plan, cluster)
        settings = ClientSettings(name=f"writer-{unique}", cluster=cluster, ready_timeout_s=60)
        self.pipeline = TokenPipeline(settings, connect)
        self.pipeline.open()

    def close(self) -> None:
        self.pipeline.close()
        for stage in self.processes.values():
            if stage.process.poll() is None:
                stage.kill()


@pytest.fixture
def fleet(
    tmp_path: Path, shared_broker: EmbeddedBroker, cluster: str, unique: str
) -> Iterator[ProcessFleet]:
    fleet = ProcessFleet(tmp_path, shared_broker, cluster, unique)
    yield fleet
    fleet.close()


class Killer:
    """Kills at a position of the first text that comes there, and looks at the clock."""

    def __init__(self, position: int, kill: Callable[[Tokens], None]) -> None:
        self._position, self._kill = position, kill
        self.killed: Tokens | None = None
        self._at = self._last = 0.0
        self.pause_s = 0.0

    def __call__(self, event: Tokens) -> None:
        now = time.monotonic()
        if self.killed is None:
            if event.position == self._position:
                self.killed = event
                self._kill(event)
                self._last = time.monotonic()
        elif event.batch_id == self.killed.batch_id:
            self.pause_s = max(self.pause_s, now - self._last)  # tokens under way come at once
            self._last = now

    def tell(self, capsys: pytest.CaptureFixture[str], what: str) -> None:
        with capsys.disabled():
            sys.stderr.write(f"\n  {what}: {self.pause_s * 1000:.0f} ms until the next token\n")


def check_nothing_shows(fleet: ProcessFleet, killer: Killer, sampling: dict[str, float]) -> None:
    undisturbed = texts(fleet, batches(fleet, **sampling)[0])
    disturbed = texts(fleet, batches(fleet, **sampling)[0], killer)  # each position once, in order
    assert killer.killed is not None
    assert undisturbed.keys() == disturbed.keys()
    for names, text in undisturbed.items():
        np.testing.assert_array_equal(disturbed[names], text)
    counts = fleet.pipeline.counts(finished=True)
    assert counts.retried >= 1
    assert (counts.delivered, counts.dead, counts.lost) == (4, 0, 0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_texts_go_on_by_the_other_device(
    fleet: ProcessFleet, sampling: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two processes of the middle stage dies for good."""

    def kill(event: Tokens) -> None:
        entry = fleet.pipeline._ledger.find(event.batch_id)
        assert entry is not None
        fleet.processes[entry.route[1]].kill()

    killer = Killer(60, kill)
    check_nothing_shows(fleet, killer, sampling)
    killer.tell(capsys, "a stage process killed, another takes over")


@pytest.mark.parametrize("stage", [0, 2], ids=["first", "last"])
def test_texts_go_on_when_the_only_device_of_a_stage_is_started_again(
    fleet: ProcessFleet, stage: int, capsys: pytest.CaptureFixture[str]
) -> None:
    name = fleet.names[0] if stage == 0 else fleet.names[-1]

    def kill(_event: Tokens) -> None:
        fleet.processes[name].kill()
        fleet.processes[name].start()

    killer = Killer(60, kill)
    check_nothing_shows(fleet, killer, {})
    killer.tell(capsys, f"the sole process of stage {stage} killed and started again")
