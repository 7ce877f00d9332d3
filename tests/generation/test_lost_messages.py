"""Messages of a text that are lost, come twice, late or in another order: none changes it."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

import client.generation.deadlines
import client.generation.progress
from client.batch import NOTHING_YET, Batch, NothingYet, Tokens
from contract.activation import Header
from contract.decoder import Step
from tests.generation.conftest import Site, Written, is_result, is_returned, write
from tests.generation.fake_decoder import FakeStage

pytestmark = pytest.mark.usefixtures("patient")


Kind = Callable[[Header, Step], bool]


@pytest.mark.parametrize("kind", [is_result, is_returned], ids=["to the client", "to stage 0"])
def test_a_lost_token_is_computed_anew(site: Site, silent: threading.Event, kind: Kind) -> None:
    lost: list[int] = []

    def fate(_stage: FakeStage, header: Header, step: Step) -> int:
        if header.attempt:
            silent.clear()
        elif is_result(header, step) and step.position == 10:
            silent.set()  # the last to come, where it does
        if kind(header, step) and step.position == 10 and not lost:
            lost.append(step.position)
            return 0
        return 1

    site.last.fate = fate
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("abc", "def")).is_right()
        assert pipeline.counts().retried == 1
        assert pipeline.near_ties == 0
    assert lost == [10]


def test_a_token_that_the_next_has_overtaken_is_not_waited_for_long(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", lambda *_: 60.0)
    lost: list[int] = []

    def fate(_stage: FakeStage, header: Header, step: Step) -> int:
        if is_result(header, step) and step.position == 10 and not lost:
            lost.append(step.position)
            return 0
        return 1

    site.last.fate = fate
    begun = time.monotonic()
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("abc")).is_right()
        assert pipeline.counts().retried == 1
    assert time.monotonic() - begun < 30


def test_a_lost_chunk_of_a_prompt_is_refused_by_the_next_one_and_sent_again(site: Site) -> None:
    lost: list[int] = []

    def hears(_header: Header, step: Step) -> bool:
        if step.position == 4 and not step.returned and not lost:
            lost.append(4)
            return False
        return True

    site.stages["pi-1"].hears = hears
    with site.pipeline() as pipeline:
        begun = time.monotonic()
        write(site, pipeline, site.batch("0123456789", max_tokens=3)).is_right()
        assert pipeline.counts().retried == 1
        assert time.monotonic() - begun < client.generation.progress.MAX_DEADLINE_S / 2
    assert lost


def test_every_message_twice_is_every_token_once(site: Site) -> None:
    for stage in site.stages.values():
        stage.fate = lambda _stage, _header, _step: 2
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("ab", "cd"), site.batch("xyz")).is_right()
        assert pipeline.counts().duplicates_dropped > 20
        assert pipeline.counts().retried == 0
        assert pipeline.near_ties == 0


def test_tokens_that_overtake_each_other_come_in_order(site: Site) -> None:
    """Each second result waits for the one after it."""
    held: list[tuple[Header, Step, bytes]] = []
    stage = site.last
    publish = stage._publish

    def swap(header: Header, step: Step, payload: bytes) -> None:
        if not is_result(header, step):
            publish(header, step, payload)
        elif held:
            publish(header, step, payload)
            publish(*held.pop())
        else:
            held.append((header, step, payload))

    stage._publish = swap  # type: ignore[method-assign]
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("abc")).is_right()
        assert pipeline.counts().retried == 0


def test_a_token_behind_another_s_prompt_is_not_late(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage computes the second prompt for longer than a token may take."""
    far, computed = threading.Event(), threading.Event()

    def deadline_s(_p99: float | None, _late: int) -> float:
        return 0.6 if far.is_set() and not computed.is_set() else 30.0  # as long as it matters

    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", deadline_s)

    def hears(header: Header, step: Step) -> bool:
        if header.batch_id.seq == 1 and not step.returned:
            time.sleep(1.8)
            computed.set()
        return True

    def source() -> Iterator[Batch | NothingYet]:
        yield site.batch("first", max_tokens=60)
        while not far.is_set():
            yield NOTHING_YET
        yield site.batch("2nd", max_tokens=3)

    site.last.hears = hears
    with site.pipeline() as pipeline:
        written = Written(site)
        for event in pipeline.generate(source()):
            written.take(event)
            if isinstance(event, Tokens) and event.position == 15:
                far.set()
        written.is_right()
        assert pipeline.counts().retried == 0
    assert computed.is_set()
