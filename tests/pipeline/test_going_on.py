"""A client with a journal dies and goes on: each batch ends once, whoever answered it and when."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.memory import MemoryBroker
from broker.transport import Callbacks, ConnectionSettings
from client.batch import Batch, BatchResult, DeadBatch, DeathReason, Ended
from client.journal import Journal
from client.journal_reader import JournalReader
from client.journal_redrive import redrive
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.activation import Activation, BatchId
from contract.errors import JournalError
from contract.plan import Plan
from contract.status import DeviceState
from tests.pipeline.fakes import FakeDevice, is_answer_of, make_batches, publish_plan
from tests.tiny import make_tiny_plan, tiny_answer

CLUSTER = "home"
DEVICES = ("pi-0", "pi-1", "pi-2")
Behaviour = Callable[[FakeDevice, Activation], None]


def answer(fake: FakeDevice, activation: Activation) -> None:
    fake.answer(activation)


class Site:
    """A broker in memory, three devices, and a client that may die."""

    def __init__(self, folder: Path, behave: Behaviour = answer) -> None:
        self.broker = MemoryBroker()
        self.path = folder / "run.journal"
        self.plan: Plan = make_tiny_plan(folder, devices=DEVICES, cluster=CLUSTER)
        publish_plan(self.broker.connect, self.plan, CLUSTER)
        behaviours = (answer, answer, lambda fake, activation: self.behave(fake, activation))
        self.behave = behave
        self.fakes = [
            FakeDevice(self.broker.connect, CLUSTER, self.plan, device, behaviour)
            for device, behaviour in zip(DEVICES, behaviours, strict=True)
        ]

    def start(self, **settings: object) -> Pipeline:
        journal = Journal(self.path)
        name = journal.client_name()
        settings.setdefault("ready_timeout_s", 15.0)
        pipeline = Pipeline(
            ClientSettings(name=name, cluster=CLUSTER, **settings),  # type: ignore[arg-type]
            self.broker.connect,
            journal=journal,
        )
        try:
            pipeline.open()
        except BaseException:
            pipeline.close()
            raise
        return pipeline

    def go_on(self, batches: list[Batch], **settings: object) -> tuple[list[Ended], Pipeline]:
        """What a program does: start, leave out what the journal has, run to the end."""
        pipeline = self.start(**settings)
        with pipeline:
            return list(pipeline.run(batches[pipeline.counts().submitted :])), pipeline

    def ends(self) -> list[Ended]:
        with JournalReader(self.path) as reader:
            return list(reader.ended())

    def close(self) -> None:
        for fake in self.fakes:
            fake.close()


def die(pipeline: Pipeline) -> None:
    """As SIGKILL: no commit, no acknowledgement, no disconnect."""
    journal, connection = pipeline._journal, pipeline._connection.main
    assert journal is not None
    connection.drop()  # type: ignore[attr-defined]
    journal.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def keeps_the_promise(site: Site, batches: list[Batch]) -> None:
    ends = site.ends()
    assert [end.batch.names for end in ends] == [batch.names for batch in batches]
    for end, batch in zip(ends, batches, strict=True):
        assert isinstance(end, BatchResult)
        expected = tiny_answer(batch.tensors["image"])
        assert end.outputs["logits"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("after", [0, 1, 7, 29, 30])
def test_a_run_goes_on_after_its_death(site: Site, after: int) -> None:
    batches = make_batches(30)
    pipeline = site.start()
    for _end in itertools.islice(pipeline.run(batches), after):
        pass
    die(pipeline)
    done_before = len(site.ends())
    assert done_before >= after  # what was handed out is written down
    ends, again = site.go_on(batches)
    assert len(ends) == 30 - done_before
    counts = again.counts(finished=True)
    assert (counts.submitted, counts.delivered, counts.dead, counts.lost) == (30, 30, 0, 0)
    keeps_the_promise(site, batches)


def test_a_run_goes_on_after_many_deaths(site: Site) -> None:
    batches = make_batches(60)
    for _ in range(8):
        pipeline = site.start()
        left = batches[pipeline.counts().submitted :]
        for _end in itertools.islice(pipeline.run(left), 5):
            pass
        die(pipeline)
    site.go_on(batches)
    keeps_the_promise(site, batches)
    with JournalReader(site.path) as reader:
        assert reader.counts().starts == 9


def test_a_result_that_came_while_nobody_was_there_counts_and_is_not_computed_again(
    site: Site,
) -> None:
    held: list[Activation] = []

    def behave(fake: FakeDevice, activation: Activation) -> None:
        held.append(activation)
        if len(held) == 4:
            fake.answer(held[0])

    site.behave = behave
    batches = make_batches(4)
    pipeline = site.start(window=4)
    first = next(pipeline.run(batches))
    die(pipeline)
    for activation in held[1:]:
        site.fakes[2].answer(activation)
    site.behave = answer
    seen = len(site.fakes[0].seen)
    ends, again = site.go_on(batches)
    assert len(ends) == 3
    assert {end.batch_id.epoch for end in ends} == {first.batch_id.epoch}
    assert len(site.fakes[0].seen) == seen
    assert again.counts().retried == 0
    keeps_the_promise(site, batches)


def test_the_session_is_kept_only_while_something_is_open(site: Site) -> None:
    def answer_some(fake: FakeDevice, activation: Activation) -> None:
        if activation.header.batch_id.seq % 2 == 0:
            fake.answer(activation)

    site.behave = answer_some
    batches = make_batches(300)
    pipeline = site.start()
    name = pipeline._settings.name
    next(pipeline.run(batches))
    assert pipeline.counts().in_flight > 0
    pipeline.close()
    assert name in site.broker._sessions
    site.behave = answer
    site.go_on(batches)
    assert name not in site.broker._sessions
    keeps_the_promise(site, batches)


def test_a_stranger_s_epoch_is_refused_even_after_a_death(site: Site) -> None:
    is_first_run = True

    def behave(fake: FakeDevice, activation: Activation) -> None:
        epoch, seq = activation.header.batch_id
        if is_first_run and seq >= 5:
            return  # so that something is left for the next one
        stranger = fake.output(activation, batch_id=BatchId(epoch ^ 1, seq))
        fake.send_on(activation.header, stranger)
        fake.answer(activation)

    site.behave = behave
    batches = make_batches(10)
    pipeline = site.start()
    next(pipeline.run(batches))
    die(pipeline)
    is_first_run = False
    _ends, again = site.go_on(batches)
    assert again.rejected > 0
    keeps_the_promise(site, batches)


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(site: Site) -> None:
    batches = make_batches(200)
    pipeline = site.start()
    journal = pipeline._journal
    assert journal is not None
    (pages,) = journal.database.execute("PRAGMA page_count").fetchone()
    journal.database.execute(f"PRAGMA max_page_count = {pages + 8}")
    handed_out = 0
    with pipeline, pytest.raises(JournalError, match="disk is full"):  # noqa: PT012
        for _end in pipeline.run(batches):
            handed_out += 1
    assert len(site.ends()) == handed_out
    site.go_on(batches)
    keeps_the_promise(site, batches)


def test_a_dead_batch_is_sent_again_when_it_was_redriven(site: Site) -> None:
    site.behave = lambda fake, a: None if a.header.batch_id.seq == 3 else fake.answer(a)
    batches = make_batches(8)
    ends, _ = site.go_on(batches, batch_timeout_s=1.5)
    [dead] = [end for end in ends if isinstance(end, DeadBatch)]
    assert (dead.batch_id.seq, dead.reason) == (3, DeathReason.TIMEOUT)
    assert redrive(site.path) == {3: 8}
    ends, again = site.go_on(batches, batch_timeout_s=5.0)
    assert [end.batch_id.seq for end in ends] == [8]
    assert again.counts().dead == 0
    keeps_the_promise(site, batches)


def test_the_user_s_time_for_a_batch_stands_still_while_nothing_can_be_delivered(
    site: Site,
) -> None:
    """A device that is away for longer than a batch may take kills no batch."""

    def go_away_once(fake: FakeDevice, activation: Activation) -> None:
        if len(fake.seen) == 3:
            fake.announce(DeviceState.OFFLINE)
            threading.Timer(3.0, fake.announce, [DeviceState.ONLINE]).start()
        else:
            fake.answer(activation)

    site.behave = go_away_once
    ends, _ = site.go_on(make_batches(6), batch_timeout_s=1.5, window=2)
    assert [type(end) for end in ends] == [BatchResult] * 6


def test_a_journal_of_another_model_is_refused_before_anything_is_sent(
    site: Site, tmp_path: Path
) -> None:
    site.go_on(make_batches(2))
    other = make_tiny_plan(tmp_path, seed=1, name="other", devices=DEVICES, cluster=CLUSTER)
    publish_plan(site.broker.connect, other, CLUSTER)
    seen = len(site.fakes[0].seen)
    with pytest.raises(JournalError, match="another file"):
        site.start()
    assert len(site.fakes[0].seen) == seen


def test_more_results_than_can_be_held_do_not_keep_the_plan_out(site: Site) -> None:
    """The broker sends at most a receive maximum of messages, and the plan comes after them."""
    with Journal(site.path) as journal:
        name = journal.client_name()
    settings = ConnectionSettings(name=name)
    dead = site.broker.connect(settings, Callbacks(on_delivery=lambda _delivery: None))
    dead.subscribe(topics.result_filter(CLUSTER, name))
    dead.drop()  # type: ignore[attr-defined]
    device = site.fakes[2]
    for _ in range(100):
        device.connection.publish(topics.result_topic(CLUSTER, name, "pi-2"), b"left over")
    batches = make_batches(5)
    _ends, pipeline = site.go_on(batches)
    assert pipeline.rejected == 100
    keeps_the_promise(site, batches)


def test_ends_of_this_run_are_right(site: Site) -> None:
    ends, _ = site.go_on(make_batches(12))
    assert all(isinstance(end, BatchResult) and is_answer_of(end) for end in ends)
