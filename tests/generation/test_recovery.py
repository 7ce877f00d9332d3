"""Devices of a text that die, restart or forget their caches: it goes on with the same tokens."""

import itertools
import random
import threading
import time

import pytest

from client.batch import DeadBatch, Tokens
from contract.activation import Header
from contract.decoder import Step
from contract.nack import NackReason
from contract.status import DeviceState
from tests.conftest import eventually
from tests.generation.conftest import (
    Site,
    Written,
    is_result,
    is_returned,
    wait_at,
    write,
)

pytestmark = pytest.mark.usefixtures("patient")


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
