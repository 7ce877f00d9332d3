"""A batch that kills devices is given up after three of them; one that was only near is not."""

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.memory import MemoryBroker
from client.batch import DeathReason
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.activation import Activation
from contract.nack import NackReason
from contract.status import DeviceState
from tests.pipeline.fakes import FakeDevice, Run, make_batches, publish_plan
from tests.tiny import make_tiny_plan

CLUSTER = "home"
Behaviour = Callable[[FakeDevice, Activation], None]
OpenPipeline = Callable[[Behaviour], tuple[Pipeline, FakeDevice]]


@pytest.fixture
def open_pipeline(tmp_path: Path) -> Iterator[OpenPipeline]:
    """Three devices, the second of which the test writes."""
    closing: list[FakeDevice | Pipeline] = []

    def open_it(behave: Behaviour) -> tuple[Pipeline, FakeDevice]:
        broker = MemoryBroker()
        plan = make_tiny_plan(tmp_path, cluster=CLUSTER)
        publish_plan(broker.connect, plan, CLUSTER)
        behaviours: list[Behaviour] = [FakeDevice.answer, behave, FakeDevice.answer]
        fakes = [
            FakeDevice(broker.connect, CLUSTER, plan, f"pi-{index}", behaviour)
            for index, behaviour in enumerate(behaviours)
        ]
        pipeline = Pipeline(ClientSettings(name="me", cluster=CLUSTER, window=2), broker.connect)
        closing.extend((*fakes, pipeline))
        pipeline.open()
        return pipeline, fakes[1]

    yield open_it
    for thing in closing:
        thing.close()


def die_and_restart(fake: FakeDevice, *, same_start: bool = False) -> None:
    """What the broker and the device say when a process is killed and, later, started again."""
    fake.announce(DeviceState.OFFLINE)
    time.sleep(0.1)
    if not same_start:
        fake.boot = secrets.randbits(53)
    fake.announce(DeviceState.ONLINE)


def test_a_batch_that_three_starts_of_a_device_did_not_survive_is_poison(
    open_pipeline: OpenPipeline,
) -> None:
    def behave(fake: FakeDevice, activation: Activation) -> None:
        if activation.header.batch_id.seq == 5:
            die_and_restart(fake)
        else:
            fake.answer(activation)

    pipeline, fake = open_pipeline(behave)
    run = Run(pipeline, make_batches(20)).go()
    run.keeps_the_promise(dead=1)
    assert (run.dead[0].batch_id.seq, run.dead[0].reason) == (5, DeathReason.POISON)
    assert "have died" in run.dead[0].detail
    assert fake.attempts(5) == [0, 1, 2]


def test_deaths_and_refusals_count_together(open_pipeline: OpenPipeline) -> None:
    """As a stage does that has seen the batch kill it twice: it says so the third time."""

    def behave(fake: FakeDevice, activation: Activation) -> None:
        header = activation.header
        if header.batch_id.seq != 5:
            fake.answer(activation)
        elif header.attempt < 2:
            die_and_restart(fake)
        else:
            fake.refuse(activation, NackReason.POISON)

    pipeline, fake = open_pipeline(behave)
    run = Run(pipeline, make_batches(20)).go()
    run.keeps_the_promise(dead=1)
    assert run.dead[0].reason is DeathReason.POISON
    assert fake.attempts(5) == [0, 1, 2]


def test_a_device_that_was_only_away_is_not_held_against_the_batch(
    open_pipeline: OpenPipeline,
) -> None:
    """A cut link looks like a death until the same start of the device is back."""

    def behave(fake: FakeDevice, activation: Activation) -> None:
        header = activation.header
        if header.batch_id.seq == 5 and header.attempt < 4:
            die_and_restart(fake, same_start=True)
        else:
            fake.answer(activation)

    pipeline, fake = open_pipeline(behave)
    run = Run(pipeline, make_batches(20)).go()
    run.keeps_the_promise()
    assert fake.attempts(5) == list(range(5))


def test_a_batch_that_was_in_the_queue_behind_is_not_accused(open_pipeline: OpenPipeline) -> None:
    """Three deaths, each with another batch in compute: no batch has more than one of them."""

    def behave(fake: FakeDevice, activation: Activation) -> None:
        header = activation.header
        if header.batch_id.seq in (3, 9, 15) and header.attempt == 0:
            die_and_restart(fake)
        else:
            fake.answer(activation)

    pipeline, _fake = open_pipeline(behave)
    Run(pipeline, make_batches(20)).go().keeps_the_promise()
