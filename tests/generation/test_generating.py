"""A batch lives from its prompt to its last token, whatever its messages and devices go through."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import client.generation.deadlines
import client.generation.progress
from client.batch import NOTHING_YET, Batch, BatchResult, DeadBatch, NothingYet, Tokens
from client.generation.progress import PrefillTimes
from contract.activation import Header
from contract.decoder import Step
from contract.errors import PlanError, PromptError, PromptTooLongError
from contract.nack import NackReason
from contract.plan import Replica, place
from contract.status import DeviceState
from tests.conftest import eventually
from tests.generation.conftest import Site, Written, request, wait_at, write
from tests.generation.fake_decoder import FakeStage, make_text_plan
from tests.pipeline.fakes import publish_plan

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def hurried(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants to wait half a minute for a message that a test knows to be lost.

    On a busy machine others are late, too: for tests that do not count attempts.
    """
    monkeypatch.setattr(PrefillTimes, "deadline_s", lambda *_: 0.4)
    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", lambda *_: 0.4)


@pytest.fixture
def silent(patient: None, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Tokens are late only while this is set: from before an attempt's last one to the next."""
    silent = threading.Event()

    def deadline_s(_p99: float | None, _late: int) -> float:
        return 0.4 if silent.is_set() else 30.0

    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", deadline_s)
    return silent


def test_the_tokens_are_those_of_the_whole_model(site: Site) -> None:
    with site.pipeline() as pipeline:
        written = write(site, pipeline, site.batch("the quick", "brown fox"[:9]), site.batch("a"))
        written.is_right()
        counts = pipeline.counts(finished=True)
    assert [len(tokens) for tokens in written.tokens.values()] == [20, 20, 20]
    assert (counts.submitted, counts.delivered, counts.retried, counts.lost) == (2, 2, 0, 0)
    assert counts.duplicates_dropped == 0


def test_a_prompt_travels_in_chunks_and_only_its_last_asks_for_a_token(site: Site) -> None:
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("123456789", max_tokens=2)).is_right()
    sent = [step for header, step in site.last.steps if not step.returned]
    assert sent[:3] == [Step(0), Step(4), Step(8, wants=True)]


def test_rows_end_by_themselves_and_the_batch_with_the_last() -> None:
    site = Site([["pi-0"], ["pi-1"]], ends=True)
    with site.pipeline() as pipeline:
        batch = site.batch("abcd", "efgh", "ijkl", max_tokens=80)
        written = write(site, pipeline, batch)
        written.is_right()
    lengths = sorted(map(len, written.tokens.values()))
    assert lengths[0] < lengths[-1], "the seeds of this test end together: choose others"
    site.close()


def test_rows_that_have_ended_stay_so_when_the_others_begin_anew() -> None:
    site = Site([["pi-0"], ["pi-1"]], ends=True)
    forgot: list[int] = []

    def hears(_header: Header, step: Step) -> bool:
        has_ended = any(any(cache.finish) for cache in site.last.caches.values())
        if step.returned and has_ended and not forgot:
            forgot.append(step.position)
            site.last.caches.clear()
        return True

    site.last.hears = hears
    with site.pipeline() as pipeline:
        batch = site.batch("abcd", "efgh", "ijkl", max_tokens=80)
        write(site, pipeline, batch).is_right()
        assert pipeline.counts().retried == 1
    assert forgot
    site.close()


def test_rows_are_sampled_each_in_its_own_way(site: Site) -> None:
    one, two = (request(site.plan, "same", temperature=1.0, seed=seed) for seed in (1, 2))
    from client.generation.request import batch_of

    with site.pipeline() as pipeline:
        written = write(site, pipeline, batch_of([one, two], ("1", "2")))
        written.is_right()
    assert written.tokens[0, 0] != written.tokens[0, 1]


Kind = Callable[[Header, Step], bool]


def is_result(header: Header, _step: Step) -> bool:
    return header.stage_index == 2


def paced(_header: Header, _step: Step) -> bool:
    """Hear everything, at the pace of a slow device."""
    time.sleep(0.02)
    return True


def is_end(event: Tokens | BatchResult | DeadBatch) -> bool:
    return not isinstance(event, Tokens)


def is_returned(header: Header, step: Step) -> bool:
    return header.stage_index == 0 and step.returned


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


def test_lost_caches_cost_a_prefill_and_no_token(site: Site) -> None:
    """A stage that restarts in between says so itself, with the next input."""
    left = [20, 40]

    def hears(_header: Header, step: Step) -> bool:
        if left and step.returned and step.position == left[0]:
            left.pop(0)
            site.last.caches.clear()
        return True

    site.last.hears = hears
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("hello", max_tokens=60)).is_right()
        assert pipeline.counts().retried == 2
    assert not left


def test_caches_that_are_lost_again_and_again_are_not_computed_without_a_pause(site: Site) -> None:
    refused: list[float] = []

    def hears(header: Header, _step: Step) -> bool:
        if len(refused) < 3:
            refused.append(time.monotonic())
            site.last.refuse(header, NackReason.CACHE_LOST)
            return False
        return True

    site.last.hears = hears
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("abc")).is_right()
    waits = [later - earlier for earlier, later in itertools.pairwise(refused)]
    assert max(waits[1:]) > 0.15, waits


def test_a_device_that_dies_costs_no_token(site: Site) -> None:
    """Its batch goes on by the other device of its stage."""
    killed = threading.Event()
    wait_at(site.last, {35: killed})
    with site.pipeline() as pipeline:
        written = Written(site)
        dead = ""
        for event in pipeline.generate([site.batch("hello", "world", max_tokens=60)]):
            written.take(event)
            if isinstance(event, Tokens) and event.position == 25:
                dead = site.last.steps[-1][0].route[0]
                site.stages[dead].die()
                killed.set()
        written.is_right()
        assert pipeline.counts().retried == 1
    routes = {header.route[0] for header, _ in site.last.steps}
    assert routes == {"pi-0", "pi-9"}
    again = next(step for header, step in site.last.steps if header.route[0] != dead)
    assert again == Step(0), "the other device begins with the prompt"


def test_a_device_that_comes_back_is_used_again() -> None:
    site = Site([["pi-0"], ["pi-1"]])
    with site.pipeline() as pipeline:
        written = Written(site)
        for event in pipeline.generate([site.batch("hello", max_tokens=40)]):
            written.take(event)
            if isinstance(event, Tokens) and event.position == 20:
                site.stages["pi-1"].die()
                site.stages["pi-1"].start()
        written.is_right()
        assert pipeline.counts().dead == 0
    site.close()


def test_two_attempts_at_once_are_one_text(site: Site, hurried: None) -> None:
    """The first attempt stands still, is replaced by another route's, and wakes up."""
    slow = threading.Event()
    first: list[str] = []
    stages = site.stages

    def hears(header: Header, step: Step) -> bool:
        first.append(header.route[0])
        if step.position == 10 and header.route[0] == first[0] and len(set(first)) == 1:
            slow.wait(timeout=5)
        return True

    for name in ("pi-0", "pi-9"):
        stages[name].hears = hears
    with site.pipeline() as pipeline:
        written = Written(site)
        for event in pipeline.generate([site.batch("hello", max_tokens=50)]):
            written.take(event)
            if isinstance(event, Tokens) and event.position == 20:
                slow.set()
        written.is_right()
        assert pipeline.counts().retried >= 1
        assert pipeline.near_ties == 0


def test_an_attempt_that_chooses_otherwise_is_counted_and_not_mixed_in(
    site: Site, silent: threading.Event
) -> None:
    """A near tie: after a prefill the best two may change places. The result that was late, and
    made another attempt be sent, comes just before that one's."""
    stage = site.last
    right, late = stage.choose, []
    publish = stage._publish

    def swap(header: Header, step: Step, payload: bytes) -> None:
        if header.attempt:
            silent.clear()
        elif is_result(header, step) and step.position == 9:
            silent.set()  # the last to come for now
        if is_result(header, step) and step.position == 10:
            if header.attempt == 0:
                late.append((header, step, payload))
                return
            if late:
                publish(*late.pop())
        if is_returned(header, step) and step.position == 10 and header.attempt == 0:
            return
        publish(header, step, payload)

    def choose(history: list[int], sampling: object) -> int:
        token = right(history, sampling)  # type: ignore[arg-type]
        attempts = {key[1] for key in stage.caches}
        return token ^ 1 if attempts == {1} and len(history) == 10 else token

    stage._publish, stage.choose = swap, choose  # type: ignore[method-assign, assignment]
    with site.pipeline() as pipeline:
        write(site, pipeline, site.batch("hello")).is_right()
        assert pipeline.near_ties == 1
        assert pipeline.counts().retried == 2


def test_a_token_behind_another_s_prompt_is_not_late(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage computes the second prompt for longer than a token may take."""
    far, computed = threading.Event(), threading.Event()

    def deadline_s(_p99: float | None, _late: int) -> float:
        return 0.2 if far.is_set() and not computed.is_set() else 30.0  # as long as it matters

    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", deadline_s)

    def hears(header: Header, step: Step) -> bool:
        if header.batch_id.seq == 1 and not step.returned:
            time.sleep(0.8)
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


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_the_text_is_the_same(site: Site, hurried: None, seed: int) -> None:
    """Messages are lost and repeated at random, caches forgotten, devices die and come back."""
    chance = random.Random(seed)
    for stage in site.stages.values():
        stage.fate = lambda *_: chance.choices((0, 1, 2), (0.02, 0.93, 0.05))[0]
    with site.pipeline() as pipeline:
        written = Written(site)
        batches = [site.batch("hello", "world", max_tokens=40), site.batch("a", max_tokens=60)]
        batches += [site.batch("x" * 30, temperature=1, seed=seed)]
        for event in pipeline.generate(batches):
            written.take(event)
            if chance.random() < 0.02:
                chance.choice(list(site.stages.values())).forget()
            if chance.random() < 0.01:
                stage = site.stages[chance.choice(("pi-0", "pi-9"))]
                stage.die()
                stage.start()
        written.is_right()
        assert len(written.ends) == 3
        assert pipeline.near_ties == 0
        counts = pipeline.counts(finished=True)
    assert (counts.delivered, counts.dead, counts.lost) == (3, 0, 0)
    assert counts.retried > 0, "nothing happened with this seed: choose another"


def note_release(*stages: FakeStage) -> threading.Event:
    """Set as soon as one of these stages hears that nobody wants a batch any more."""
    released = threading.Event()

    def hears(_header: Header, step: Step) -> bool:
        if step.release:
            released.set()
        return True

    for stage in stages:
        stage.hears = hears
    return released


def test_what_nobody_wants_any_more_is_released(site: Site) -> None:
    wait_at(site.last, {30: note_release(site.stages["pi-0"], site.stages["pi-9"])})
    with site.pipeline() as pipeline:
        batch = site.batch("hello", max_tokens=100)
        ends = []
        for event in pipeline.generate([batch]):
            if isinstance(event, Tokens) and event.position == 10:
                pipeline.stop(batch)
            if isinstance(event, BatchResult):
                ends.append(event)
        counts = pipeline.counts(finished=True)
    assert len(ends) == 1
    assert (counts.delivered, counts.dead, counts.lost) == (1, 0, 0)
    eventually(lambda: site.last.released, "the last stage heard of it from stage 0")
    computed = [step.position for _, step in site.last.steps if not step.release]
    assert max(computed) <= 30, "nothing that stage 0 heard of later"


def test_a_stop_that_comes_too_late_leaves_the_next_run_alone(site: Site) -> None:
    with site.pipeline() as pipeline:
        batch = site.batch("hello", max_tokens=5)
        for _ in pipeline.generate([batch]):
            pass
        pipeline.stop(batch)
        written = [event for event in pipeline.generate([batch]) if isinstance(event, Tokens)]
    assert len(written) == 5


def test_a_placement_anew_keeps_nobody_from_releasing(site: Site) -> None:
    anew = place(site.plan, [[Replica(device="pi-0")], [Replica(device="pi-1")]], "texts")
    placed = threading.Event()
    wait_at(site.last, {30: placed, 60: note_release(site.stages["pi-0"])})
    with site.pipeline() as pipeline:
        batch = site.batch("hello", max_tokens=100)
        for event in pipeline.generate([batch]):
            if isinstance(event, Tokens) and event.position == 10:
                publish_plan(site.broker.connect, anew, "texts")
                placed.set()
            if pipeline.plan.placement == anew.placement:
                pipeline.stop(batch)
        assert pipeline.plan.placement == anew.placement
    eventually(lambda: site.stages["pi-0"].released, "stage 0 heard of it")


def test_a_batch_that_is_given_up_is_released(site: Site) -> None:
    site.last.hears = paced
    site.last.fate = lambda _stage, header, step: 0 if is_result(header, step) else 1
    with site.pipeline(batch_timeout_s=0.3) as pipeline:
        ends = [e for e in pipeline.generate([site.batch("hello", max_tokens=100)]) if is_end(e)]
        assert [type(end) for end in ends] == [DeadBatch]
        first = [site.stages[name] for name in ("pi-0", "pi-9")]
        eventually(lambda: any(stage.released for stage in first), "stage 0 heard of it")
        assert pipeline._watch.feed.router.outstanding("pi-1") == 0


def test_a_row_that_is_stopped_leaves_the_others_alone(site: Site) -> None:
    stopped = threading.Event()
    wait_at(site.last, {20: stopped})
    with site.pipeline() as pipeline:
        batch = site.batch("hello", "world", max_tokens=30)
        written = Written(site)
        for event in pipeline.generate([batch]):
            written.take(event)
            if isinstance(event, Tokens) and event.position == 10:
                pipeline.stop(batch, (0,))
                stopped.set()
    assert len(written.tokens[0, 0]) < 30
    assert len(written.tokens[0, 1]) == 30
    eventually(lambda: site.last.released, "the last stage heard of the end")
    releases = [step.release for _, step in site.last.steps]
    assert releases == sorted(releases), "nothing was computed after a release"
    computed = [step.position for _, step in site.last.steps if not step.release]
    assert max(computed) == len("world") + 30 - 2, "the last token comes of the one before it"


def test_what_has_ended_by_itself_is_released_at_every_stage(site: Site) -> None:
    """Only the last stage knows that it has."""
    with site.pipeline() as pipeline:
        for _ in pipeline.generate([site.batch("hello", max_tokens=5)]):
            pass
    eventually(lambda: len([s for s in site.stages.values() if s.released]) == 2, "both heard")


def test_what_is_stopped_before_it_begins_is_not_computed() -> None:
    site = Site([["pi-0"], ["pi-1"]], sequences=2, batch_size=2)
    told = threading.Event()
    wait_at(site.last, {15: told})
    with site.pipeline() as pipeline:
        first, second, third = (
            site.batch(f"{name}a", f"{name}b", max_tokens=15) for name in ("1st", "2nd", "3rd")
        )
        written = Written(site)
        for event in pipeline.generate([first, second, third]):
            written.take(event)
            if isinstance(event, Tokens) and event.batch is first and event.position == 10:
                pipeline.stop(second, (0,))
                pipeline.stop(second, (1,))
                pipeline.stop(third, (1,))
                told.set()
        counts = pipeline.counts(finished=True)
    assert [end.batch for end in written.ends] == [first, second, third]
    assert (counts.submitted, counts.delivered, counts.lost) == (3, 3, 0)
    assert [key for key, tokens in written.tokens.items() if len(tokens) == 15] == [
        (0, 0),
        (0, 1),
        (2, 0),
    ]
    assert {header.batch_id.seq for header, _ in site.last.steps} == {0, 2}
    site.close()


def test_the_last_batch_may_end_before_it_begins(site: Site) -> None:
    with site.pipeline() as pipeline:
        batch = site.batch("hello")
        pipeline.stop(batch)

        def source() -> Iterator[Batch | NothingYet]:
            yield NOTHING_YET  # the stop is heard
            yield batch

        ends = list(pipeline.generate(source()))
    assert [type(end) for end in ends] == [BatchResult]
    assert not site.last.steps


def test_rows_that_were_stopped_do_not_keep_another_attempt_going(site: Site) -> None:
    stopped = threading.Event()

    def hears(header: Header, step: Step) -> bool:
        if not header.attempt and step.returned and step.position == 20:
            assert stopped.wait(30)
            site.last.caches.clear()
        return True

    site.last.hears = hears
    with site.pipeline() as pipeline:
        batch = site.batch("hello", "world", max_tokens=30)
        batch.tensors["sampling"][0, -1] = 100.0  # type: ignore[index]
        for event in pipeline.generate([batch]):
            if isinstance(event, Tokens) and event.position == 10:
                pipeline.stop(batch, (0,))
                stopped.set()
        assert pipeline.counts().delivered == 1
        assert pipeline.counts().retried == 1
    computed = [step.position for _, step in site.last.steps if not step.release]
    assert max(computed) == len("world") + 30 - 2, "nothing after the last token of row 1"


def test_closing_releases_what_is_open(site: Site) -> None:
    with site.pipeline() as pipeline:
        for event in pipeline.generate([site.batch("hello", max_tokens=100)]):
            if isinstance(event, Tokens):
                break
    first = next(s for n, s in site.stages.items() if n in ("pi-0", "pi-9") and s.steps)
    eventually(lambda: len(first.released) == 1, "stage 0 heard of it")


def test_no_more_sequences_are_in_flight_than_the_stages_have_caches_for() -> None:
    site = Site([["pi-0"], ["pi-1"]], sequences=3, batch_size=2)
    most = 0
    with site.pipeline() as pipeline:
        batches = [site.batch(f"a{i}", f"b{i}", max_tokens=5) for i in range(4)]
        batches += [site.batch(f"c{i}", max_tokens=5) for i in range(4)]
        written = Written(site)
        for event in pipeline.generate(batches):
            written.take(event)
            rows = sum(entry.batch.images for entry in pipeline._ledger.open_entries())
            most = max(most, rows)
        written.is_right()
        assert len(written.ends) == 8
    assert most == 3
    site.close()


def test_prompts_in_flight_together_fit_the_queue_of_a_receiver() -> None:
    """A long one waits for the others, and a batch that alone exceeds the queue is refused."""
    site = Site([["pi-0"], ["pi-1"]], context_tokens=2048, chunk_tokens=1)
    together: list[list[int]] = []
    with site.pipeline() as pipeline:
        begin = pipeline._begin

        def noted(batch: Batch) -> None:
            begin(batch)
            entries = pipeline._ledger.open_entries()
            together.append([entry.batch.tensors["token_ids"].shape[1] for entry in entries])

        pipeline._begin = noted  # type: ignore[method-assign]
        prompts = ["a" * 300, "b" * 301, "c" * 900, "d" * 30, "e" * 31]
        batches = [site.batch(prompt, max_tokens=3) for prompt in prompts]
        write(site, pipeline, *batches).is_right()
        assert pipeline.counts().retried == 0
        batch = site.batch("abc")
        batch.tensors["sampling"][0, -1] = 1001.0  # type: ignore[index]
        with pytest.raises(PromptTooLongError, match="larger --chunk"):
            next(iter(pipeline.generate([batch])))
    assert together == [[300], [301], [900], [30], [30, 31]], "only short ones go together"
    site.close()


def test_a_source_may_have_nothing_yet(site: Site) -> None:
    asked: list[int] = []
    ready = threading.Event()

    def source() -> Iterator[Batch | NothingYet]:
        while not ready.is_set():
            asked.append(1)
            yield NOTHING_YET
        yield site.batch("abc")

    with site.pipeline() as pipeline:

        def later() -> None:
            eventually(lambda: len(asked) > 1, "it was asked again")
            ready.set()
            pipeline.wake()

        thread = threading.Thread(target=later)
        thread.start()
        written = Written(site)
        for event in pipeline.generate(source()):
            written.take(event)
        thread.join()
        written.is_right()
    assert len(written.ends) == 1


def test_a_batch_that_devices_do_not_survive_is_given_up(site: Site) -> None:
    def hears(header: Header, _step: Step) -> bool:
        site.last.refuse(header, NackReason.ENGINE_FAILED)
        return False

    site.last.hears = hears
    with site.pipeline() as pipeline:
        ends = list(pipeline.generate([site.batch("abc")]))
        assert pipeline.counts(finished=True).dead == 1
    assert [type(end) for end in ends] == [DeadBatch]


def test_a_device_that_stops_and_comes_back_holds_the_text_up_and_no_more() -> None:
    site = Site([["pi-0"], ["pi-1"]])
    is_back = threading.Event()
    wait_at(site.last, {35: is_back})
    with site.pipeline() as pipeline:
        written = Written(site)

        def back() -> None:
            eventually(lambda: pipeline.waiting_for(), "it waits for the device")
            site.stages["pi-0"].forget()
            site.stages["pi-0"].announce(DeviceState.ONLINE)
            is_back.set()

        thread = threading.Thread(target=back)
        for event in pipeline.generate([site.batch("hello", max_tokens=40)]):
            written.take(event)
            if isinstance(event, Tokens) and event.position == 15:
                site.stages["pi-0"].announce(DeviceState.STOPPED)
                thread.start()
        thread.join()
        written.is_right()
        assert pipeline.counts().retried >= 1
    site.close()


def test_what_does_not_fit_is_refused_before_anything_is_sent(site: Site) -> None:
    with site.pipeline() as pipeline:
        batch = site.batch("abc")
        batch.tensors["sampling"][0, -1] = 129.0  # type: ignore[index]
        with pytest.raises(PromptError, match=r"129.*128"):
            next(iter(pipeline.generate([batch])))
        batch = site.batch("abc")
        batch.tensors["token_ids"][0, 0] = 257  # type: ignore[index]
        with pytest.raises(PromptError, match="token 257"):
            next(iter(pipeline.generate([batch])))
    assert not site.last.steps


def test_images_and_texts_are_not_confused(site: Site) -> None:
    with site.pipeline() as pipeline, pytest.raises(PlanError, match="shardline generate"):
        next(iter(pipeline.run([site.batch("abc")])))


def test_another_model_does_not_go_on_with_the_text(site: Site) -> None:
    other = make_text_plan([["pi-0", "pi-9"], ["pi-1"]], "texts", name="other", digest="1" * 64)
    with site.pipeline() as pipeline:
        events = pipeline.generate([site.batch("hello", max_tokens=100)])
        next(events)
        publish_plan(site.broker.connect, other, "texts")
        with pytest.raises(PlanError, match="other"):
            list(events)


def test_the_metrics_tell_of_tokens(site: Site) -> None:
    told = []
    with site.pipeline() as pipeline:
        pipeline.on_metrics = told.append
        write(site, pipeline, site.batch("hello", "world", max_tokens=30))
    assert told[-1].tokens_per_s is not None
    assert sum(metrics.tokens_per_s > 0 for metrics in told) >= 1
    assert told[-1].first_token_ms > 0
    assert told[-1].near_ties_total == 0
    assert told[-1].window == 8
