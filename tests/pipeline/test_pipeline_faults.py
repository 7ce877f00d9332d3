"""Whatever a device does with a batch, the client ends it once: with the right answer, or dead."""

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from broker.transport import Connect
from client.batch import DeathReason
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.activation import Activation, BatchId, Header, decode, encode
from contract.nack import NackReason
from contract.plan import Plan
from contract.status import DeviceState, Event, EventKind
from tests.conftest import StartStage, eventually
from tests.pipeline.fakes import FakeDevice, Run, make_batches, place_on, publish_plan
from tests.stage.harness import Listener
from tests.tiny import make_tiny_plan

Behaviour = Callable[[FakeDevice, Activation], None]


class Site:
    """Two real stages and a last one that the test writes, and a client."""

    def __init__(
        self, folder: Path, connect: Connect, cluster: str, unique: str, start: StartStage
    ) -> None:
        self.connect, self.cluster, self.unique = connect, cluster, unique
        self.devices = [f"pi-{index}-{unique}" for index in range(3)]
        self.plan: Plan = make_tiny_plan(folder, devices=tuple(self.devices), cluster=cluster)
        self._folder, self._start = folder, start
        self._closing: list[object] = []

    def open(self, behave: Behaviour, **settings: object) -> tuple[Pipeline, FakeDevice]:
        for device in self.devices[:2]:
            self._start(device, self._folder)
        fake = self.fake(self.devices[2], behave)
        publish_plan(self.connect, self.plan, self.cluster)
        return self.client(**settings), fake

    def fake(self, device: str, behave: Behaviour, plan: Plan | None = None) -> FakeDevice:
        fake = FakeDevice(self.connect, self.cluster, plan or self.plan, device, behave)
        self._closing.append(fake)
        return fake

    def client(self, **settings: object) -> Pipeline:
        settings.setdefault("name", f"client-{secrets.token_hex(4)}")
        settings.setdefault("ready_timeout_s", 15.0)
        pipeline = Pipeline(ClientSettings(cluster=self.cluster, **settings), self.connect)  # type: ignore[arg-type]
        self._closing.append(pipeline)
        pipeline.open()
        return pipeline

    def listen(self, *filters: str) -> Listener:
        listener = Listener(self.connect, f"observer-{secrets.token_hex(4)}", *filters)
        self._closing.append(listener)
        return listener

    def close(self) -> None:
        for thing in reversed(self._closing):
            thing.close()  # type: ignore[attr-defined]


@pytest.fixture
def site(
    tmp_path: Path, connect: Connect, cluster: str, unique: str, start_stage: StartStage
) -> Iterator[Site]:
    site = Site(tmp_path, connect, cluster, unique, start_stage)
    yield site
    site.close()


def answer(fake: FakeDevice, activation: Activation) -> None:
    fake.answer(activation)


def first_attempt_of(*seqs: int) -> Callable[[Activation], bool]:
    return lambda a: a.header.batch_id.seq in seqs and a.header.attempt == 0


def test_a_batch_that_a_device_swallows_is_sent_again_when_its_deadline_passes(site: Site) -> None:
    swallowed = first_attempt_of(20)

    def behave(fake: FakeDevice, activation: Activation) -> None:
        if not swallowed(activation):
            fake.answer(activation)

    pipeline, fake = site.open(behave)
    events = site.listen(topics.event_filter(site.cluster))
    run = Run(pipeline, make_batches(25)).go()
    run.keeps_the_promise()
    assert fake.attempts(20) == [0, 1]
    assert pipeline.counts().retried == 1
    [late] = [result for result in run.results if result.attempt]
    assert late.batch_id.seq == 20
    assert late.latency_ms >= 1900  # its deadline; the others did not wait for it
    eventually(lambda: retries(events), "an event tells it")
    assert len(retries(events)) == 1


def test_a_lost_attempt_does_not_lengthen_the_deadline_of_others(site: Site) -> None:
    """Else each loss would wait four times as long as the one before."""
    swallowed = first_attempt_of(20, 21, 22, 60)

    def behave(fake: FakeDevice, activation: Activation) -> None:
        if not swallowed(activation):
            fake.answer(activation)

    pipeline, fake = site.open(behave)
    batches = make_batches(70)
    Run(pipeline, batches[:40]).go()  # to the end of the first losses
    run = Run(pipeline, batches[40:]).go()
    assert len(run.results) == 30
    assert fake.attempts(60) == [0, 1]
    [late] = [result for result in run.results if result.attempt]
    assert late.latency_ms < 6000  # its deadline is 2 s; four times the first loss would be 8 s


def retries(events: Listener) -> list[Event]:
    heard = events.payloads("event", Event.model_validate_json)
    return [event for event in heard if event.kind is EventKind.BATCH_RETRIED]


def test_a_batch_that_every_engine_refuses_is_dead_after_three_attempts(site: Site) -> None:
    def behave(fake: FakeDevice, activation: Activation) -> None:
        if activation.header.batch_id.seq == 3:
            fake.refuse(activation, NackReason.ENGINE_FAILED)
        else:
            fake.answer(activation)

    pipeline, fake = site.open(behave)
    events = site.listen(topics.event_filter(site.cluster))
    run = Run(pipeline, make_batches(10)).go()
    run.keeps_the_promise(dead=1)
    assert run.dead[0].reason is DeathReason.POISON
    assert run.dead[0].batch_id.seq == 3
    assert "as the test wants it" in run.dead[0].detail
    assert fake.attempts(3) == [0, 1, 2]
    eventually(
        lambda: any(b"batch_dead" in d.payload for d in events.heard), "an event tells the death"
    )


@pytest.mark.parametrize(
    "reason", [NackReason.NOT_READY, NackReason.NO_SUBSCRIBER, NackReason.PLAN_MISMATCH]
)
def test_a_refusal_that_is_not_the_batch_s_fault_never_kills_it(
    site: Site, reason: NackReason
) -> None:
    def behave(fake: FakeDevice, activation: Activation) -> None:
        if activation.header.batch_id.seq == 3 and activation.header.attempt < 4:
            fake.refuse(activation, reason)
        else:
            fake.answer(activation)

    pipeline, fake = site.open(behave)
    run = Run(pipeline, make_batches(10)).go()
    run.keeps_the_promise()
    assert fake.attempts(3) == [0, 1, 2, 3, 4]


def test_one_refusal_is_followed_by_another_attempt_at_once(site: Site) -> None:
    refused = first_attempt_of(3)

    def behave(fake: FakeDevice, activation: Activation) -> None:
        if refused(activation):
            fake.refuse(activation, NackReason.ENGINE_FAILED)
        else:
            fake.answer(activation)

    pipeline, fake = site.open(behave)
    run = Run(pipeline, make_batches(10)).go()
    run.keeps_the_promise()
    assert fake.attempts(3) == [0, 1]
    [late] = [result for result in run.results if result.attempt]
    assert late.latency_ms < 1500  # not the deadline of 2 s and more


def test_results_that_come_three_times_count_once(site: Site) -> None:
    def behave(fake: FakeDevice, activation: Activation) -> None:
        for _ in range(3):
            fake.answer(activation)

    pipeline, _fake = site.open(behave)
    run = Run(pipeline, make_batches(30)).go()
    run.keeps_the_promise()
    assert 30 <= pipeline.counts().duplicates_dropped <= 60


def test_results_that_come_in_another_order_find_their_batches(site: Site) -> None:
    held: list[Activation] = []

    def behave(fake: FakeDevice, activation: Activation) -> None:
        held.append(activation)
        if len(held) == 5:
            for waiting in reversed(held):
                fake.answer(waiting)
            held.clear()

    pipeline, _fake = site.open(behave, window=5)
    run = Run(pipeline, make_batches(20)).go()
    run.keeps_the_promise()
    assert [end.batch_id.seq for end in run.ends] != list(range(20))


def test_results_of_another_run_are_rejected(site: Site) -> None:
    def behave(fake: FakeDevice, activation: Activation) -> None:
        header = activation.header
        epoch, seq = header.batch_id
        for stranger in (
            {"batch_id": BatchId(epoch ^ 1, seq)},
            {"batch_id": BatchId(epoch, seq + 1000)},
            {"plan_id": "f" * 16},
        ):
            fake.send_on(header, fake.output(activation, **stranger))
        fake.answer(activation)

    pipeline, _fake = site.open(behave)
    events = site.listen(topics.event_filter(site.cluster))
    run = Run(pipeline, make_batches(10)).go()
    run.keeps_the_promise()
    assert pipeline.rejected == 30
    assert pipeline.counts().duplicates_dropped == 0
    eventually(lambda: events.heard, "the rejection is reported")


def _flipped(fake: FakeDevice, activation: Activation) -> bytes:
    altered = bytearray(fake.output(activation))
    altered[-2] ^= 1
    return bytes(altered)


def _cut(fake: FakeDevice, activation: Activation) -> bytes:
    return fake.output(activation)[:-5]


def _text(fake: FakeDevice, activation: Activation) -> bytes:
    return b"42"


def _tensor(fake: FakeDevice, activation: Activation, array: np.ndarray, name: str) -> bytes:
    return encode(replace(activation.header, stage_index=3), {name: array})


def _too_few(fake: FakeDevice, activation: Activation) -> bytes:
    return _tensor(fake, activation, np.zeros((1, 4), np.float32), "logits")


def _other_name(fake: FakeDevice, activation: Activation) -> bytes:
    return _tensor(fake, activation, np.zeros((2, 4), np.float32), "scores")


def _other_shape(fake: FakeDevice, activation: Activation) -> bytes:
    return _tensor(fake, activation, np.zeros((2, 5), np.float32), "logits")


def _oversized(fake: FakeDevice, activation: Activation) -> bytes:
    return _tensor(fake, activation, np.zeros((100_000, 4), np.float32), "logits")


def test_an_unacceptable_result_is_rejected_and_the_batch_sent_again(site: Site) -> None:
    """One batch for each kind of fault; all of them wait for the same deadline."""
    faults = dict(
        enumerate(
            [_flipped, _cut, _text, _too_few, _other_name, _other_shape, _oversized], start=20
        )
    )

    def behave(fake: FakeDevice, activation: Activation) -> None:
        seq = activation.header.batch_id.seq
        if activation.header.attempt == 0 and seq in faults:
            fake.send_on(activation.header, faults[seq](fake, activation))
        else:
            fake.answer(activation)

    pipeline, fake = site.open(behave, window=8)
    run = Run(pipeline, make_batches(28)).go()
    run.keeps_the_promise()
    assert pipeline.rejected == len(faults)
    for seq in faults:
        assert fake.attempts(seq) == [0, 1]


def test_a_batch_without_a_result_in_the_user_s_time_is_dead_and_the_others_are_not(
    site: Site,
) -> None:
    def behave(fake: FakeDevice, activation: Activation) -> None:
        if activation.header.batch_id.seq != 3:
            fake.answer(activation)

    pipeline, _fake = site.open(behave, batch_timeout_s=2.0)
    run = Run(pipeline, make_batches(10)).go()
    run.keeps_the_promise(dead=1)
    assert run.dead[0].reason is DeathReason.TIMEOUT
    assert run.dead[0].batch_id.seq == 3


def test_the_result_of_a_batch_that_was_given_up_is_not_counted(site: Site) -> None:
    held: list[Activation] = []

    def behave(fake: FakeDevice, activation: Activation) -> None:
        if activation.header.batch_id.seq == 0:
            held.append(activation)
            return
        if activation.header.batch_id.seq == 9:
            fake.answer(held[0])
        fake.answer(activation)

    pipeline, _fake = site.open(behave, batch_timeout_s=2.0, window=1)
    run = Run(pipeline, make_batches(10)).go()
    run.keeps_the_promise(dead=1)
    assert pipeline.counts().duplicates_dropped == 1


def test_the_window_bounds_what_is_in_flight(site: Site) -> None:
    held: list[Activation] = []
    released = threading.Event()
    sent_while_held: list[int] = []

    def behave(fake: FakeDevice, activation: Activation) -> None:
        held.append(activation)
        while released.is_set() and held:
            fake.answer(held.pop())

    pipeline, fake = site.open(behave, window=4)
    inputs = site.listen(topics.input_filter(site.cluster, site.devices[0]))

    def look_and_release() -> None:
        eventually(lambda: len(held) >= 4, "the window is full")
        inputs.connection.publish("nowhere", b"a round trip").result(timeout=5)
        sent_while_held.append(len(inputs.heard))
        released.set()
        fake.answer(held.pop(0))

    helper = threading.Thread(target=look_and_release)
    helper.start()
    run = Run(pipeline, make_batches(30)).go()
    helper.join()
    run.keeps_the_promise()
    assert pipeline.window == 4
    assert sent_while_held == [4]


def test_the_low_watermark_follows_the_oldest_open_batch(site: Site) -> None:
    pipeline, _fake = site.open(answer, window=3)
    inputs = site.listen(topics.input_filter(site.cluster, site.devices[0]))
    Run(pipeline, make_batches(40)).go().keeps_the_promise()
    first_attempts: list[Header] = []

    def all_observed() -> bool:
        headers = [decode(delivery.payload).header for delivery in list(inputs.heard)]
        first_attempts[:] = [header for header in headers if header.attempt == 0]
        return len(first_attempts) == 40

    eventually(all_observed, "all inputs are observed")
    lows = [header.low for header in first_attempts]
    assert lows == sorted(lows)
    assert all(header.low <= header.batch_id.seq for header in first_attempts)
    assert len(set(lows)) > 10  # it moves on with the run, not only at its end
    assert len({header.batch_id.epoch for header in first_attempts}) == 1


def test_a_device_that_says_offline_has_its_batches_sent_another_way_at_once(site: Site) -> None:
    """No deadline is waited for: the first one would be 30 s away."""
    one, other = f"a-{site.unique}", f"b-{site.unique}"
    site.plan = place_on(site.plan, [site.devices[0], site.devices[1], [one, other]], site.cluster)
    site.devices = [site.devices[0], site.devices[1], one]

    def fall_silent(fake: FakeDevice, activation: Activation) -> None:
        if len(fake.seen) == 4:
            fake.announce(DeviceState.OFFLINE)

    site.fake(other, answer)
    pipeline, silent = site.open(fall_silent, window=8)
    run = Run(pipeline, make_batches(40)).go()
    run.keeps_the_promise()
    assert len(silent.seen) >= 4
    assert max(result.latency_ms for result in run.results) < 10_000


def test_replicas_share_the_batches(site: Site) -> None:
    one, other = f"a-{site.unique}", f"b-{site.unique}"
    site.plan = place_on(site.plan, [site.devices[0], site.devices[1], [one, other]], site.cluster)
    site.devices = [site.devices[0], site.devices[1], one]
    second = site.fake(other, answer)
    pipeline, first = site.open(answer, window=8)
    Run(pipeline, make_batches(60)).go().keeps_the_promise()
    assert len(first.seen) + len(second.seen) == 60
    assert min(len(first.seen), len(second.seen)) >= 10


def test_a_device_cannot_speak_for_another(site: Site) -> None:
    """The topic is what the broker's access control guards; what the payload claims is not."""
    pipeline, fake = site.open(answer, batch_timeout_s=8.0)
    Run(pipeline, make_batches(3)).go().keeps_the_promise()
    liar = f"liar-{site.unique}"
    fake.announce(DeviceState.OFFLINE, topic_of=liar)
    observer = site.listen(topics.status_filter(site.cluster))
    eventually(lambda: any(liar in d.topic for d in observer.heard), "the lie is out")
    ends = list(pipeline.run(make_batches(3)))  # hears the lie on its way
    assert [type(end).__name__ for end in ends] == ["BatchResult"] * 3
    assert pipeline.waiting_for() == ""
