"""What nobody wants any more is computed no further, and its caches are free at every stage."""

import threading
from collections.abc import Iterator

import pytest

from client.batch import NOTHING_YET, Batch, BatchResult, DeadBatch, NothingYet, Tokens
from contract.activation import Header
from contract.decoder import Step
from contract.plan import Replica, place
from tests.conftest import eventually
from tests.generation.conftest import Site, Written, is_end, is_result, paced, wait_at
from tests.generation.fake_decoder import FakeStage
from tests.pipeline.fakes import publish_plan

pytestmark = pytest.mark.usefixtures("patient")


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
