"""When a text's next token is late, and what tokens teach of that, whoever brings them."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import client.generation.deadlines
import client.generation.progress
import client.pipeline
from client.batch import NOTHING_YET, Batch, NothingYet, Tokens
from client.feed import Feed, FeedWatch
from client.generation.deadlines import first_token_deadline_s, note_gap, note_tokens
from client.generation.progress import (
    GAP_PATIENCE_S,
    MAX_DOUBLINGS,
    Generation,
    PrefillTimes,
    token_deadline_s,
)
from client.generation.transcript import Transcript
from client.ledger import Entry, Ledger
from client.retry import MAX_DEADLINE_S, MIN_DEADLINE_S, P99_FACTOR
from contract.activation import Header
from contract.decoder import Finish, Sampling, Step
from tests.generation.conftest import Site, Written, wait_at, write
from tests.generation.fake_decoder import FakeStage, make_text_plan

PROMPT = 40


class Text:
    """One text, its attempts, and the time: as a sender and a receiver would note them."""

    def __init__(self) -> None:
        watch = FeedWatch("writer", None)
        watch.take_plan(make_text_plan([["pi-0"], ["pi-1"]], "texts"), 0.0)
        self.feed: Feed = watch.feed
        self.ledger = Ledger(epoch=1)
        self.entry: Entry = self.ledger.submit(Batch({}, ("a",)), 0.0)
        self.transcript = Transcript(np.zeros((1, PROMPT), np.int64), [Sampling()])
        self.entry.generation = Generation(self.transcript)

    def send(self, at: float) -> None:
        """An attempt goes out; the one before it has had its time."""
        entry, generation = self.entry, self.entry.generation
        assert generation is not None
        if entry.attempt >= 0:
            generation.note_late()
        entry.deadline_s = first_token_deadline_s(entry, self.feed)
        self.ledger.sent(entry, ("pi-0", "pi-1"), at + entry.deadline_s)
        generation.begin(entry.attempt)
        sent = entry.attempts[entry.attempt]
        sent.published_at = sent.active_at = at
        sent.sent_tokens = self.transcript.length

    def token(self, attempt: int, at: float, position: int | None = None) -> None:
        """An attempt brings a token."""
        where = self.transcript.length if position is None else position
        taken = self.transcript.take(attempt, where, (7,), (Finish.NOT_YET,))
        if taken.is_ahead:
            note_gap(self.entry, attempt, at)
        else:
            new = bool(taken.columns)
            note_tokens(self.entry, attempt, self.feed, at, at, is_new=new)


def test_a_first_token_that_comes_too_late_teaches_how_long_they_take() -> None:
    text = Text()
    text.send(0.0)
    text.send(30.0)
    text.token(0, 45.0)
    assert text.feed.prefills.deadline_s(PROMPT, 0) == pytest.approx(P99_FACTOR * 45)
    assert text.entry.retry_at >= 45.0 + 45.0, "the next one begins only now"


def test_what_an_attempt_stood_behind_the_one_before_it_is_not_its_own_time() -> None:
    text = Text()
    text.send(0.0)
    text.send(30.0)
    text.token(0, 200.0)
    text.token(1, 400.0, PROMPT)
    assert text.feed.prefills.deadline_s(PROMPT, 0) < P99_FACTOR * 201


def test_the_deadline_of_a_first_token_doubles_while_none_comes() -> None:
    text, given = Text(), []
    for _ in range(MAX_DOUBLINGS + 3):
        text.send(0.0)
        given.append(text.entry.deadline_s)
    doubled = [MAX_DEADLINE_S * 2**late for late in range(MAX_DOUBLINGS + 1)]
    assert given == [*doubled, doubled[-1], doubled[-1]]


def test_the_deadline_of_a_first_token_is_not_doubled_by_what_was_refused() -> None:
    text = Text()
    text.send(0.0)
    assert text.entry.generation is not None
    text.entry.generation.idle_attempts = 9
    assert first_token_deadline_s(text.entry, text.feed) == MAX_DEADLINE_S


def test_a_prompt_is_given_the_time_that_its_length_needs() -> None:
    times = PrefillTimes(chunk_tokens=1)
    assert times.deadline_s(1000, 0) == MAX_DEADLINE_S
    times.add(0.01, 10)
    assert times.deadline_s(10, 0) == MAX_DEADLINE_S
    times.add(100.0, 1000)
    assert times.deadline_s(1000, 0) == pytest.approx(P99_FACTOR * 100, rel=0.02)
    assert times.deadline_s(500, 0) == pytest.approx(P99_FACTOR * 50, rel=0.02)
    assert token_deadline_s(0.01, 0) == MIN_DEADLINE_S
    assert token_deadline_s(1.0, 0) == P99_FACTOR


def test_a_short_prompt_that_stood_behind_another_s_lets_no_long_one_wait_for_hours() -> None:
    times = PrefillTimes(chunk_tokens=64)
    times.add(10.0, 2)
    assert times.deadline_s(64, 0) == P99_FACTOR * 10
    assert times.deadline_s(4096, 0) == P99_FACTOR * 10, "the longest that was seen"
    times.add(20.0, 4096)
    assert times.deadline_s(4096, 0) == P99_FACTOR * 20
    assert times.deadline_s(2, 0) == pytest.approx(P99_FACTOR * 10, rel=0.05)


@pytest.fixture
def speaking() -> Text:
    """Its first attempt has brought three tokens by second 1, and has been replaced at 3."""
    text = Text()
    text.send(0.0)
    for at in (0.8, 0.9, 1.0):
        text.token(0, at)
    assert text.entry.deadline_s == MIN_DEADLINE_S
    text.send(3.0)
    return text


def test_a_token_that_comes_too_late_teaches_how_long_they_take(speaking: Text) -> None:
    speaking.token(0, 9.0)
    assert speaking.feed.attempts.p99_s == pytest.approx(8.0, rel=0.05)
    speaking.token(1, 12.0)
    assert speaking.entry.deadline_s > P99_FACTOR * 7


def test_the_deadline_of_a_token_doubles_while_none_comes_in_time(speaking: Text) -> None:
    given = []
    for attempt in range(1, 4):
        speaking.token(attempt, 4.0 * attempt)
        given.append(speaking.entry.deadline_s)
        speaking.send(4.0 * attempt + 3)
    assert given == [MIN_DEADLINE_S * 2, MIN_DEADLINE_S * 4, MIN_DEADLINE_S * 8]
    speaking.token(4, 16.0)
    speaking.token(4, 16.1)
    assert speaking.entry.deadline_s == token_deadline_s(speaking.feed.attempts.p99_s, 0)


def test_late_tokens_of_an_earlier_attempt_do_not_hurry_the_latest(speaking: Text) -> None:
    until = speaking.entry.retry_at
    missing = speaking.transcript.length
    speaking.token(0, 3.1, missing + 1)
    assert speaking.entry.retry_at == until
    speaking.token(0, 3.2, missing)
    assert speaking.entry.retry_at >= until
    speaking.token(1, 4.0, missing)
    speaking.token(1, 4.1, missing + 9)
    assert speaking.entry.retry_at == 4.1 + GAP_PATIENCE_S, "it lives, and a token is missing"


def test_what_an_earlier_attempt_repeats_says_nothing_of_the_latest(speaking: Text) -> None:
    until, p99_s = speaking.entry.retry_at, speaking.feed.attempts.p99_s
    speaking.token(0, 3.5, PROMPT + 1)
    assert (speaking.entry.retry_at, speaking.feed.attempts.p99_s) == (until, p99_s)


@pytest.fixture
def narrow() -> Iterator[Site]:
    """Two stages of one device each."""
    site = Site([["pi-0"], ["pi-1"]])
    yield site
    site.close()


def test_a_prompt_that_takes_longer_than_any_deadline_gets_through(
    narrow: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.generation.progress, "MAX_DEADLINE_S", 0.4)

    def hears(_header: Header, step: Step) -> bool:
        if not step.returned and not step.release:
            time.sleep(0.12)  # ten chunks: three times the first deadline
        return True

    narrow.stages["pi-0"].hears = hears
    with narrow.pipeline(batch_timeout_s=60) as pipeline:
        write(narrow, pipeline, narrow.batch("x" * PROMPT)).is_right()
        assert pipeline.counts().retried >= 1


class Clock:
    """The time of a pipeline, which a test may set forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


def test_whoever_reads_the_tokens_may_pause(narrow: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(client.pipeline, "time", clock)
    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", lambda *_: 10.0)
    ticked = threading.Event()
    wait_at(narrow.last, {40: ticked})

    def source() -> Iterator[Batch | NothingYet]:
        yield narrow.batch("x" * 8, max_tokens=80)
        while not clock.ahead_s:
            yield NOTHING_YET
        yield NOTHING_YET  # asked again, the pipeline has looked at the clock since the pause
        ticked.set()

    with narrow.pipeline() as pipeline:
        written = Written(narrow)
        for event in pipeline.generate(source()):
            written.take(event)
            if isinstance(event, Tokens) and event.position == 15:
                clock.ahead_s = 11.0
        written.is_right()
        assert pipeline.counts().retried == 0


def test_an_attempt_is_not_replaced_because_the_one_before_it_goes_on(site: Site) -> None:
    """A result is lost; those after it keep coming while another device is at the prompt."""
    lost: list[int] = []

    def hears(header: Header, step: Step) -> bool:
        is_prompt = not step.returned and not step.release
        time.sleep((0.1 if is_prompt and header.attempt else 0.0) + 0.02 * step.returned)
        return True

    def fate(_stage: FakeStage, header: Header, step: Step) -> int:
        if header.stage_index == 2 and step.position == PROMPT + 5 and not lost:
            lost.append(step.position)
            return 0
        return 1

    site.stages["pi-0"].hears = site.stages["pi-9"].hears = hears
    site.last.fate = fate
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("x" * PROMPT, max_tokens=60)).is_right()
        assert pipeline.counts().retried == 1
    assert lost
