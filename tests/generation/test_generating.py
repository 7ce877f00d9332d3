"""A text from its prompt to its last token, on devices that do as they should."""

import threading
from collections.abc import Iterator

import pytest

from client.batch import NOTHING_YET, Batch, NothingYet
from client.generation.request import batch_of
from contract.decoder import Step
from contract.errors import PlanError, PromptError, PromptTooLongError
from tests.conftest import eventually
from tests.generation.conftest import Site, Written, request, wait_at, write
from tests.generation.fake_decoder import make_text_plan
from tests.pipeline.fakes import publish_plan

pytestmark = pytest.mark.usefixtures("patient")


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


def test_rows_are_sampled_each_in_its_own_way(site: Site) -> None:
    one, two = (request(site.plan, "same", temperature=1.0, seed=seed) for seed in (1, 2))
    with site.pipeline() as pipeline:
        written = write(site, pipeline, batch_of([one, two], ("1", "2")))
        written.is_right()
    assert written.tokens[0, 0] != written.tokens[0, 1]


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
    published = threading.Event()
    wait_at(site.last, {15: published})
    with site.pipeline() as pipeline:
        events = pipeline.generate([site.batch("hello", max_tokens=100)])
        next(events)
        publish_plan(site.broker.connect, other, "texts")
        published.set()
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
