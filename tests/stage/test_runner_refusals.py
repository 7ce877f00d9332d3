"""Every message that a stage cannot run is refused with a reason, and the stage goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from broker.transport import PublishOutcome
from contract import topics
from contract.activation import BatchId, decode, encode
from contract.errors import (
    BrokerUnreachableError,
    EngineError,
    MessageTooLargeError,
    NotAuthorisedError,
)
from contract.nack import NackReason
from contract.plan import Replica, place
from contract.status import EventKind
from tests.contract.test_activation_malformed import sealed
from tests.stage.harness import CLIENT, CLUSTER, Bench, hidden, make_bench
from tests.tiny import tiny_weights

EPOCH_OF_ANOTHER_CLIENT = 77


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def oversized(bench: Bench) -> bytes:
    return bench.message(images=bench.plan.max_message_bytes() // 64 + 1)


UNREADABLE: dict[str, Callable[[Bench], bytes]] = {
    "empty": lambda b: b"",
    "plain text": lambda b: b"hello, is anybody there?",
    "json": lambda b: b'{"batch": 1}',
    "an image file": lambda b: b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "a pickle": lambda b: b"\x80\x04\x95\x10\0\0\0\0\0\0\0",
    "a safetensors file of others": lambda b: safetensors.numpy.save({"hidden_0": hidden(2)}),
    "truncated in the header": lambda b: b.message()[:100],
    "truncated in the tensors": lambda b: b.message()[:-1],
    "one bit flipped in the header": lambda b: _flip(b.message(), 60),
    "one bit flipped in the tensors": lambda b: _flip(b.message(), -3),
    "longer than it says": lambda b: b.message() + b"\0",
    "oversized": oversized,
    "oversized and hollow": lambda b: b"\0" * (b.plan.max_message_bytes() + 1),
}


def _flip(payload: bytes, position: int) -> bytes:
    altered = bytearray(payload)
    altered[position] ^= 4
    return bytes(altered)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_message_is_counted_reported_acknowledged_and_survived(
    bench: Bench, kind: str
) -> None:
    bench.process(UNREADABLE[kind](bench))
    assert bench.acked == ["input"]
    assert bench.connection.published == []
    counts = bench.counters.snapshot()
    assert (counts.rejected, counts.nacks, counts.batches) == (1, 0, 0)
    [(event, detail)] = bench.events
    assert event is EventKind.MESSAGE_REJECTED
    assert bench.topic() in detail
    assert bench.engine.runs == 0
    bench.answers_a_good_batch()


@pytest.mark.parametrize("topic", ["other/topic", "shardline/home/device/pi-1/in/x/1/pi-0"])
def test_a_message_on_a_foreign_topic_is_rejected(bench: Bench, topic: str) -> None:
    bench.process(bench.message(), topic=topic)
    assert bench.acked == ["input"]
    assert bench.counters.snapshot().rejected == 1
    bench.answers_a_good_batch()


LIES: dict[str, dict[str, object]] = {
    "the plan is a list": {"plan": []},
    "the plan is null": {"plan": None},
    "the plan is a number": {"plan": 5},
    "the plan is a long text": {"plan": "0" * 30_000},
    "the trace is null": {"trace": None},
    "a time that no float holds": {"trace": "1,2,3," + "9" * 4000},
    "the route is a list": {"route": ["pi-0"]},
    "offsets without end": {"offsets": [float("inf"), 8]},
    "offsets that are no number": {"offsets": [float("nan"), 8]},
    "a shape without end": {"shape": [10**30, 0]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_with_a_right_checksum_is_survived(bench: Bench, lie: str) -> None:
    metadata = json.loads(bench.message()[8:].split(b"}}")[0] + b"}}")["__metadata__"]
    change = dict(LIES[lie])
    entry = {
        "dtype": "F32",
        "shape": change.pop("shape", [2, 16]),
        "data_offsets": change.pop("offsets", [0, 128]),
    }
    document: dict[str, Any] = {"__metadata__": {**metadata, **change}, "hidden_0": entry}
    text = json.dumps(document, separators=(",", ":")).encode()
    bench.process(sealed(text, hidden(2).tobytes()))
    assert bench.acked == ["input"]
    bench.answers_a_good_batch()


REFUSED: dict[str, tuple[NackReason, Callable[[Bench], tuple[bytes, str]]]] = {
    "another plan": (
        NackReason.PLAN_MISMATCH,
        lambda b: (b.message(plan_id="f" * 16), b.topic(plan_id="f" * 16)),
    ),
    "another plan in the header only": (
        NackReason.PLAN_MISMATCH,
        lambda b: (b.message(plan_id="f" * 16), b.topic()),
    ),
    "another plan in the topic only": (
        NackReason.PLAN_MISMATCH,
        lambda b: (b.message(), b.topic(plan_id="f" * 16)),
    ),
    "another stage": (
        NackReason.MISROUTED,
        lambda b: (b.message(index=2), b.topic(sender="pi-1", stage=2)),
    ),
    "another stage in the header only": (
        NackReason.MISROUTED,
        lambda b: (b.message(index=0), b.topic(sender=CLIENT)),
    ),
    "another stage in the topic only": (
        NackReason.MISROUTED,
        lambda b: (b.message(), b.topic(stage=0)),
    ),
    "a route through another device": (
        NackReason.MISROUTED,
        lambda b: (b.message(route=("pi-0", "pi-9", "pi-2")), b.topic()),
    ),
    "a route of another length": (
        NackReason.MISROUTED,
        lambda b: (b.message(route=("pi-0", "pi-1")), b.topic()),
    ),
    "a sender that serves no stage before": (
        NackReason.MISROUTED,
        lambda b: (b.message(route=("evil", "pi-1", "pi-2")), b.topic(sender="evil")),
    ),
    "a sender that serves no stage before and is its own client": (
        NackReason.MISROUTED,
        lambda b: (
            b.message(route=("evil", "pi-1", "pi-2"), client="evil"),
            b.topic(sender="evil"),
        ),
    ),
    "more images than the plan was made for": (
        NackReason.INVALID,
        lambda b: (b.message(images=b.plan.batch_size + 1), b.topic()),
    ),
    "a tensor of another name": (
        NackReason.INVALID,
        lambda b: (encode(b.header(), {"hidden_1": hidden(2)}), b.topic()),
    ),
    "a tensor too many": (
        NackReason.INVALID,
        lambda b: (encode(b.header(), {"hidden_0": hidden(2), "x": hidden(1)}), b.topic()),
    ),
    "no tensor": (NackReason.INVALID, lambda b: (encode(b.header(), {}), b.topic())),
    "a tensor of another shape": (
        NackReason.INVALID,
        lambda b: (encode(b.header(), {"hidden_0": hidden(2)[:, :15]}), b.topic()),
    ),
    "a tensor of another rank": (
        NackReason.INVALID,
        lambda b: (encode(b.header(), {"hidden_0": hidden(2)[None]}), b.topic()),
    ),
    "a tensor of another dtype": (
        NackReason.INVALID,
        lambda b: (encode(b.header(), {"hidden_0": hidden(2).astype(np.float64)}), b.topic()),
    ),
    "an empty batch": (
        NackReason.INVALID,
        lambda b: (encode(b.header(), {"hidden_0": hidden(0)}), b.topic()),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_batch_that_does_not_fit_is_refused_to_its_client(bench: Bench, kind: str) -> None:
    reason, make = REFUSED[kind]
    payload, topic = make(bench)
    bench.process(payload, topic)
    [nack] = bench.nacks
    assert nack.reason is reason
    assert (nack.seq, nack.attempt, nack.device) == (0, 0, "pi-1")
    assert nack.epoch == "00000000deadbeef"
    client = decode(payload).header.client
    assert bench.connection.published[0].topic == topics.nack_topic(CLUSTER, client, "pi-1")
    assert bench.acked == ["input"]
    assert bench.outputs == []
    assert bench.engine.runs == 0
    counts = bench.counters.snapshot()
    assert (counts.rejected, counts.nacks, counts.batches) == (0, 1, 0)
    [(event, detail)] = bench.events
    assert event is EventKind.MESSAGE_REJECTED
    assert str(reason) in detail
    bench.answers_a_good_batch()


FORGED: dict[str, Callable[[Bench], tuple[bytes, str]]] = {
    "by a stranger": lambda b: (b.message(), b.topic(sender="evil")),
    "by the client itself": lambda b: (b.message(), b.topic(sender=CLIENT)),
    "by a later device of the route": lambda b: (b.message(), b.topic(sender="pi-2")),
    "of another stage": lambda b: (b.message(index=2), b.topic(sender="evil", stage=2)),
    "of another plan": lambda b: (
        b.message(plan_id="f" * 16),
        b.topic(sender="evil", plan_id="f" * 16),
    ),
    "as a first input of another client": lambda b: (
        b.message(index=0),
        b.topic(sender="evil", stage=0),
    ),
    "in another codec": lambda b: (b.message(codec="int8"), b.topic(sender="evil")),
    "as a result": lambda b: (b.message(index=3), b.topic(sender="evil")),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_batch_from_who_is_not_before_us_on_its_route_is_told_to_nobody(
    bench: Bench, kind: str
) -> None:
    """The client that it names did not send it: a refusal would count against a batch of its."""
    payload, topic = FORGED[kind](bench)
    bench.process(payload, topic)
    assert bench.connection.published == []
    assert bench.acked == ["input"]
    assert bench.counters.snapshot().rejected == 1
    [(event, detail)] = bench.events
    assert event is EventKind.MESSAGE_REJECTED
    assert "expected it from" in detail
    assert bench.engine.runs == 0
    bench.answers_a_good_batch()


def test_what_another_sender_makes_up_is_not_taken_for_the_batch(bench: Bench) -> None:
    """A replica of the stage before sends rubbish under the number of a batch that is not its."""
    plan = place(
        bench.plan,
        [[Replica(device="pi-0"), Replica(device="pi-9")]]
        + [list(spot.replicas) for spot in bench.plan.placement[1:]],
        CLUSTER,
    )
    loaded = bench.runner.loaded
    assert loaded is not None
    bench.runner.load(replace(loaded, plan=plan))
    rubbish = encode(
        bench.header(7, route=("pi-9", "pi-1", "pi-2"), low=7), {"hidden_0": hidden(2, 99)}
    )
    bench.process(rubbish, bench.topic(sender="pi-9"), "rubbish")
    bench.process(bench.message(7), label="true")
    assert bench.engine.runs == 2
    answers = [decode(output.payload) for output in bench.outputs]
    assert [answer.header.route[0] for answer in answers] == ["pi-9", "pi-0"]
    expected = np.maximum(hidden(2, 7) @ tiny_weights()[1], 0)
    np.testing.assert_allclose(answers[1].tensors["hidden_1"], expected, rtol=1e-6)


def test_a_watermark_that_another_sender_makes_up_stales_nothing(bench: Bench) -> None:
    plan = place(
        bench.plan,
        [[Replica(device="pi-0"), Replica(device="pi-9")]]
        + [list(spot.replicas) for spot in bench.plan.placement[1:]],
        CLUSTER,
    )
    loaded = bench.runner.loaded
    assert loaded is not None
    bench.runner.load(replace(loaded, plan=plan))
    far = 2**62
    bench.process(
        bench.message(far, low=far, route=("pi-9", "pi-1", "pi-2")), bench.topic(sender="pi-9")
    )
    bench.process(bench.message(3), label="true")
    assert bench.nacks == []
    assert bench.acked[-1] == "true"


def test_a_batch_that_set_out_before_the_plan_was_placed_anew_is_still_taken(bench: Bench) -> None:
    loaded = bench.runner.loaded
    assert loaded is not None
    moved = place(bench.plan, [[Replica(device=d)] for d in ("pi-9", "pi-1", "pi-2")], CLUSTER)
    bench.runner.load(replace(loaded, plan=moved, earlier_feeders=loaded.feeders))
    bench.answers_a_good_batch()


def test_a_refusal_names_the_route_that_it_refuses(bench: Bench) -> None:
    bench.process(bench.message(images=bench.plan.batch_size + 1))
    [nack] = bench.nacks
    assert nack.route == ("pi-0", "pi-1", "pi-2")


def test_a_stage_without_a_shard_refuses_as_not_ready(bench: Bench) -> None:
    loaded = bench.runner.loaded
    bench.runner.load(None)
    bench.process(bench.message())
    assert [nack.reason for nack in bench.nacks] == [NackReason.NOT_READY]
    assert bench.acked == ["input"]
    bench.runner.load(loaded)
    bench.answers_a_good_batch()


def test_a_batch_below_the_low_watermark_is_stale(bench: Bench) -> None:
    bench.process(bench.message(seq=10, low=8), label="first")
    bench.process(bench.message(seq=7, low=0), label="stale")
    assert [nack.reason for nack in bench.nacks] == [NackReason.STALE]
    assert bench.nacks[0].seq == 7
    assert bench.acked == ["first", "stale"]
    assert bench.engine.runs == 1
    bench.process(bench.message(seq=8, low=0), label="just open")
    assert bench.engine.runs == 2
    bench.answers_a_good_batch()


def test_the_low_watermark_is_kept_for_each_epoch_apart(bench: Bench) -> None:
    bench.process(bench.message(seq=10, low=8))
    bench.process(bench.message(batch_id=BatchId(EPOCH_OF_ANOTHER_CLIENT, 0)))
    assert bench.nacks == []
    assert bench.engine.runs == 2


def test_a_failing_engine_is_told_and_survived(bench: Bench) -> None:
    bench.engine.fails = EngineError("out of luck")
    bench.process(bench.message())
    [nack] = bench.nacks
    assert nack.reason is NackReason.ENGINE_FAILED
    assert "out of luck" in nack.detail
    assert bench.acked == ["input"]
    assert bench.counters.snapshot().batches == 0
    bench.engine.fails = None
    bench.answers_a_good_batch()


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"hidden_2": np.zeros((2, 12), np.float32)}, id="another name"),
        pytest.param({"hidden_1": np.zeros((2, 13), np.float32)}, id="another shape"),
        pytest.param({"hidden_1": np.zeros((2, 12), np.float64)}, id="another dtype"),
        pytest.param({"hidden_1": np.zeros((0, 12), np.float32)}, id="no image"),
        pytest.param({"hidden_1": np.zeros((3, 12), np.float32)}, id="an image too many"),
    ],
)
def test_an_engine_that_answers_wrongly_is_told_and_survived(
    bench: Bench, answers: dict[str, np.ndarray]
) -> None:
    bench.engine.answers = answers
    bench.process(bench.message(images=2))
    assert [
        nack.reason in (NackReason.INVALID, NackReason.ENGINE_FAILED) for nack in bench.nacks
    ] == [True]
    assert bench.outputs == []
    assert bench.acked == ["input"]
    bench.engine.answers = None
    bench.answers_a_good_batch()


def test_nobody_listening_downstream_is_told(bench: Bench) -> None:
    to_next = topics.input_topic(CLUSTER, "pi-2", bench.plan.plan_id, 2, "pi-1")
    bench.connection.dead_topics = {to_next}
    bench.process(bench.message())
    [nack] = bench.nacks
    assert nack.reason is NackReason.NO_SUBSCRIBER
    assert "pi-2" in nack.detail
    assert bench.acked == ["input"]
    bench.connection.dead_topics = set()
    bench.answers_a_good_batch()


def test_nobody_listening_to_the_refusal_either_ends_there(bench: Bench) -> None:
    bench.connection.dead_topics = {topics.nack_topic(CLUSTER, CLIENT, "pi-1")}
    bench.runner.load(None)
    bench.process(bench.message())
    assert len(bench.connection.published) == 1
    assert bench.acked == ["input"]


def test_an_output_that_the_broker_refuses_is_told(bench: Bench) -> None:
    bench.connection.automatic = False
    bench.process(bench.message())
    bench.connection.automatic = True
    bench.outputs[0].future.set_exception(NotAuthorisedError("not for you"))
    [nack] = bench.nacks
    assert nack.reason is NackReason.PUBLISH_REFUSED
    assert "not for you" in nack.detail
    assert bench.acked == ["input"]
    assert bench.runner.outputs_waiting() == 0
    bench.answers_a_good_batch()


def test_an_output_too_large_for_the_broker_is_told(bench: Bench) -> None:
    publish = bench.connection.publish

    def limited(topic: str, payload: bytes, **more: Any) -> Any:
        if "/in/" in topic:
            raise MessageTooLargeError(topic, len(payload), 10)
        return publish(topic, payload, **more)

    bench.connection.publish = limited  # type: ignore[method-assign]
    bench.process(bench.message())
    [nack] = bench.nacks
    assert nack.reason is NackReason.PUBLISH_REFUSED
    assert "max_packet_size" in nack.detail
    assert bench.acked == ["input"]
    assert bench.runner.outputs_waiting() == 0


def test_a_refusal_that_cannot_be_sent_leaves_the_input_acknowledged(bench: Bench) -> None:
    bench.connection.raises = MessageTooLargeError("nack", 2, 1)
    bench.process(bench.message(plan_id="f" * 16))
    assert bench.acked == ["input"]
    bench.answers_a_good_batch()


def test_a_refusal_is_safe_at_the_broker_before_the_input_is_acknowledged(bench: Bench) -> None:
    bench.connection.automatic = False
    bench.process(bench.message(plan_id="f" * 16))
    assert bench.acked == []
    bench.connection.published[0].future.set_result(PublishOutcome.ACCEPTED)
    assert bench.acked == ["input"]


def test_a_refusal_lost_with_the_connection_leaves_the_input_acknowledged(bench: Bench) -> None:
    bench.connection.automatic = False
    bench.process(bench.message(plan_id="f" * 16))
    bench.connection.published[0].future.set_exception(BrokerUnreachableError("gone"))
    assert bench.acked == ["input"]
