"""What a stage of a language model does not take: refused with a reason, and it goes on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import topics
from contract.activation import encode
from contract.decoder import Sampling, Step, encode_sampling
from contract.nack import NackReason
from stage.decoder_work import RELEASED_REMEMBERED
from tests.hand_decoder import TINY, hand_greedy, prompts
from tests.stage.decoder_ring import Ring
from tests.stage.harness import (
    CLIENT,
    CLUSTER,
    Bench,
    GemmEngine,
    loaded_stage,
    make_bench,
    pictures,
)

LIMIT = Sampling(max_position=9)
ONE = prompts(1, 1)


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path, end_tokens=())


def generates_well(ring: Ring, seq: int = 900) -> None:
    told = len(ring.results)
    prompt = prompts(1, 4, 77)
    ring.prompt(prompt, (LIMIT,), seq=seq)
    ring.run()
    assert len(ring.results) == told + 5
    np.testing.assert_array_equal(ring.text(seq=seq), hand_greedy(prompt, 5))


def rows_of(values: list[float], rows: int = 1) -> np.ndarray:
    return np.array([values] * rows, np.float64)


GOOD = [0.0, 0.0, 1.0, 1.0, 0.0, 9.0]


def changed(index: int, value: float) -> np.ndarray:
    return rows_of([*GOOD[:index], value, *GOOD[index + 1 :]])


INVALID: dict[str, Callable[[Ring], Any]] = {
    "more rows than the plan's batch": lambda r: r.send(prompts(4, 2), Step(0)),
    "more tokens than a chunk": lambda r: r.send(prompts(1, 6), Step(0)),
    "tokens behind the end of the caches": lambda r: r.send(prompts(1, 2), Step(TINY.context - 1)),
    "a position beyond all numbers": lambda r: r.send(ONE, Step(2**62)),
    "a token beyond the vocabulary": lambda r: r.send(ONE * 0 + TINY.vocabulary, Step(0)),
    "a negative token": lambda r: r.send(ONE * 0 - 1, Step(0)),
    "no scalars": lambda r: r.send(ONE, Step(0), scalars=()),
    "a scalar too many": lambda r: r.send(ONE, Step(0), scalars=(*Step(0).scalars(), ("x", 1))),
    "a flag that is none": lambda r: r.send(
        ONE, Step(0), scalars=(("position", 0), ("wants", 2), ("returned", 0), ("release", 0))
    ),
    "tokens as float": lambda r: r.send(ONE.astype(np.float32), Step(0)),
    "tokens of one dimension": lambda r: r.send(ONE[0], Step(0)),
    "no tokens": lambda r: r.send(ONE[:, :0], Step(0)),
    "a tensor too many": lambda r: r.send(ONE, Step(0), tensors={"x": np.ones(1, np.float32)}),
    "sampling of another number of rows": lambda r: r.send(
        ONE, Step(0), tensors={"sampling": rows_of(GOOD, 2)}
    ),
    "another codec": lambda r: r.send(ONE, Step(0), codec="float16"),
    "another number of rows than the batch began with": lambda r: (
        r.send(ONE, Step(0)),
        r.send(prompts(2, 1), Step(1)),
    ),
    **{
        f"sampling with {name} {value}": lambda r, i=index, v=value: r.send(
            ONE, Step(0), tensors={"sampling": changed(i, v)}
        )
        for index, name, values in (
            (0, "temperature", (-1, np.nan, np.inf)),
            (1, "top_k", (-1, 0.5, np.inf)),
            (2, "top_p", (0, 1.1, np.nan)),
            (3, "repetition_penalty", (0, -1, np.inf)),
            (4, "seed", (-1, 0.5, 2.0**54)),
            (5, "max_position", (-1, 0.5, np.nan)),
        )
        for value in values
    },
}


@pytest.mark.parametrize("kind", INVALID)
def test_a_message_beyond_the_plan_s_limits_is_refused_as_invalid(ring: Ring, kind: str) -> None:
    INVALID[kind](ring)
    ring.run()
    assert [nack.reason for nack in ring.nacks] == [NackReason.INVALID]
    assert set(ring.acked) <= {"input", "pi-1", "pi-2"}
    assert "input" in ring.acked
    generates_well(ring)


def test_more_rows_than_there_are_caches_are_refused(tmp_path: Path) -> None:
    ring = Ring(tmp_path, rows=3, sequences=2)
    ring.send(prompts(3, 2), Step(0))
    ring.run()
    assert [nack.reason for nack in ring.nacks] == [NackReason.INVALID]
    assert "at most 2 at once" in ring.nacks[0].detail


def returned(ring: Ring, ids: np.ndarray, step: Step, sender: str = "pi-2", **changes: Any) -> None:
    """What comes back to stage 0, on the topic of ``sender``."""
    stage = changes.pop("stage", 3)
    topic = topics.input_topic(CLUSTER, "pi-0", ring.plan.plan_id, stage, sender)
    ring.send(ids, step, topic=topic, to="pi-0", **changes)


RING = Step(4, wants=True, returned=True)
FORGED: dict[str, Callable[[Ring], Any]] = {
    "a token from a device of another stage": lambda r: returned(r, ONE, RING, sender="pi-1"),
    "a token from a stranger": lambda r: returned(r, ONE, RING, sender="evil"),
    "a token from another client": lambda r: returned(r, ONE, RING, sender="client-2"),
    "a client's chunk from the last stage": lambda r: returned(r, ONE, Step(4)),
    "a prompt in another's name": lambda r: returned(r, ONE, Step(0), sender="evil", stage=0),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_token_from_who_is_not_the_last_stage_is_told_to_nobody(ring: Ring, kind: str) -> None:
    prompt = prompts(1, 4)
    ring.send(prompt, Step(0))
    ring.run()
    FORGED[kind](ring)
    ring.run()
    assert ring.nacks == []
    assert ring.devices["pi-0"].counters.snapshot().rejected == 1
    ring.send(ONE, Step(4, wants=True), (LIMIT,))
    ring.run(results=1)
    np.testing.assert_array_equal(ring.text(), hand_greedy(np.hstack([prompt, ONE]), 1))


MISROUTED: dict[str, Callable[[Ring], Any]] = {
    "from a device that does not serve the last stage": lambda r: returned(
        r, ONE, RING, sender="evil", route=("pi-0", "pi-1", "evil")
    ),
    "on the client's topic": lambda r: returned(r, ONE, RING, stage=0),
    "of the client on the ring's topic": lambda r: returned(
        r, ONE, Step(4), sender=CLIENT, stage=3
    ),
}


@pytest.mark.parametrize("kind", MISROUTED)
def test_a_token_by_another_way_than_the_ring_s_is_misrouted(ring: Ring, kind: str) -> None:
    ring.send(prompts(1, 4), Step(0))
    ring.run()
    MISROUTED[kind](ring)
    ring.run()
    assert [nack.reason for nack in ring.nacks] == [NackReason.MISROUTED]
    generates_well(ring)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(Step(4, wants=False, returned=True), id="after which none is wanted"),
        pytest.param(Step(0, wants=True, returned=True), id="that begins a sequence"),
        pytest.param(Step(4, returned=True, release=True), id="that releases"),
    ],
)
def test_the_last_stage_can_send_back_nothing_but_a_token(ring: Ring, step: Step) -> None:
    ring.send(prompts(1, 4), Step(0))
    ring.run()
    returned(ring, ONE, step)
    ring.run()
    assert [nack.reason for nack in ring.nacks] == [NackReason.INVALID]
    assert ring.devices["pi-0"].runner.cache_usage.sequences == 1


def test_two_tokens_cannot_come_back_at_once(ring: Ring) -> None:
    ring.send(prompts(1, 4), Step(0))
    returned(ring, prompts(1, 2), RING)
    ring.run()
    assert [nack.reason for nack in ring.nacks] == [NackReason.INVALID]


def test_a_release_frees_what_came_by_the_same_way_alone(tmp_path: Path) -> None:
    ring = Ring(tmp_path, end_tokens=(), devices=("pi-0", "pi-1", "pi-2"))
    ring.send(prompts(1, 4), Step(0))
    ring.run()
    release = Step(0, release=True)
    ring.send(ONE, release, client="client-2")  # of its own batch of that number
    ring.send(ONE, release, attempt=0, seq=1)
    ring.run()
    assert ring.nacks == []
    assert [d.runner.cache_usage.sequences for d in ring.devices.values()] == [1, 1, 1]
    ring.send(ONE, release)
    ring.run()
    assert [d.runner.cache_usage.sequences for d in ring.devices.values()] == [0, 0, 0]


def test_what_is_remembered_of_releases_is_bounded(ring: Ring) -> None:
    for seq in range(RELEASED_REMEMBERED + 20):
        ring.release(seq=seq)
    work: Any = ring.devices["pi-0"].runner._work
    assert len(work._released) == RELEASED_REMEMBERED
    generates_well(ring)


def test_another_sender_s_watermark_attempts_and_releases_free_nothing(tmp_path: Path) -> None:
    """A replica of the stage before makes up a batch, with the numbers of one that is not its."""
    ring = Ring(tmp_path, end_tokens=(), devices=("pi-0", "pi-1", "pi-2"))
    loaded = ring.devices["pi-1"].runner.loaded
    assert loaded is not None
    ring.devices["pi-1"].runner.load(replace(loaded, earlier_feeders=frozenset({"pi-9"})))
    prompt = prompts(1, 4)
    ring.prompt(prompt, (LIMIT,), seq=5)
    ring.run(results=2)
    tensors = {
        "hidden_1": np.ones((1, 1, TINY.hidden), np.float32),
        "token_ids": ONE,
        "sampling": encode_sampling((LIMIT,)),
    }
    topic = topics.input_topic(CLUSTER, "pi-1", ring.plan.plan_id, 1, "pi-9")
    release = Step(0, release=True)
    for seq, low, step, left in ((5, 0, Step(0), 2), (5, 0, release, 1), (9, 9, Step(0), 2)):
        header = ring.header(step, seq=seq, low=low, attempt=7, stage_index=1)
        header = replace(header, route=("pi-9", "pi-1", "pi-2"))
        ring.deliver("pi-1", topic, encode(header, tensors))
        assert ring.devices["pi-1"].runner.cache_usage.sequences == left, "the true one stays"
    ring.devices["pi-1"].waiting()
    ring.run()
    np.testing.assert_array_equal(ring.text(seq=5), hand_greedy(prompt, 5))


def test_a_stage_of_images_takes_no_token_back(tmp_path: Path) -> None:
    """Its header may say so: then its sender would be the last stage, which feeds nobody."""
    bench: Bench = make_bench(tmp_path)
    bench.runner.load(loaded_stage(bench.plan, 0, GemmEngine(0)))
    route = ("pi-1", "pi-8", "pi-2")
    header = bench.header(index=0, route=route, scalars=(("returned", 1),))
    message = encode(header, {"image": pictures(2)})
    for stage in (0, 3):
        bench.process(message, bench.topic(sender="pi-2", stage=stage))
    assert [nack.reason for nack in bench.nacks] == [NackReason.MISROUTED] * 2
    assert bench.outputs == []
