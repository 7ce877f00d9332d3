"""What a stage does with good batches: once, in the right place, acknowledged at the right time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from broker.transport import PublishOutcome
from contract import topics
from contract.activation import BatchId, Hop, decode, encode
from contract.errors import BrokerUnreachableError
from stage.dedup import EPOCHS_REMEMBERED, AttemptKey, Output, SeenBatches
from tests.stage.harness import (
    CLIENT,
    CLUSTER,
    EPOCH,
    Bench,
    GemmEngine,
    hidden,
    loaded_stage,
    make_bench,
)
from tests.tiny import tiny_weights


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path, automatic=False)


def accept(bench: Bench, which: int = -1) -> None:
    bench.outputs[which].future.set_result(PublishOutcome.ACCEPTED)


def test_an_input_is_acknowledged_only_after_the_broker_has_its_output(bench: Bench) -> None:
    bench.process(bench.message())
    assert len(bench.outputs) == 1
    assert bench.acked == []
    assert bench.runner.outputs_waiting() == 1
    accept(bench)
    assert bench.acked == ["input"]
    assert bench.runner.outputs_waiting() == 0


def test_each_input_waits_for_its_own_output(bench: Bench) -> None:
    for seq in range(3):
        bench.process(bench.message(seq), label=f"batch {seq}")
    accept(bench, 1)
    assert bench.acked == ["batch 1"]
    accept(bench, 2)
    accept(bench, 0)
    assert bench.acked == ["batch 1", "batch 2", "batch 0"]


def test_an_output_goes_to_the_next_device_of_the_route(bench: Bench) -> None:
    header = bench.header(seq=3, attempt=2, low=1, trace=(Hop(1, 2, 3, 4),))
    bench.process(bench.message(3, attempt=2, low=1, trace=header.trace))
    [output] = bench.outputs
    assert output.topic == topics.input_topic(CLUSTER, "pi-2", bench.plan.plan_id, 2, "pi-1")
    assert (output.qos, output.retain) == (1, False)
    sent = decode(output.payload, bench.plan.max_message_bytes())
    assert sent.header.batch_id == BatchId(EPOCH, 3)
    assert (sent.header.attempt, sent.header.low, sent.header.stage_index) == (2, 1, 2)
    assert sent.header.route == header.route
    assert sent.header.client == CLIENT
    assert sent.header.plan_id == bench.plan.plan_id
    assert sent.header.trace[0] == Hop(1, 2, 3, 4)
    hop = sent.header.trace[1]
    assert 1 == hop.received_us < hop.started_us <= hop.finished_us <= hop.sent_us
    assert list(sent.tensors) == ["hidden_1"]
    expected = np.maximum(hidden(2, 3) @ tiny_weights()[1], 0)
    np.testing.assert_allclose(sent.tensors["hidden_1"], expected, rtol=1e-6)


def test_the_last_stage_answers_the_client(bench: Bench) -> None:
    earlier = frozenset({"pi-9"})
    bench.runner.load(replace(loaded_stage(bench.plan, 2, GemmEngine(2)), earlier_feeders=earlier))
    header = bench.header(index=2, route=("pi-0", "pi-9", "pi-1"))
    inputs = {"hidden_1": np.ones((2, 12), np.float32)}
    bench.process(encode(header, inputs), bench.topic(stage=2, sender="pi-9"))
    [output] = bench.outputs
    assert output.topic == topics.result_topic(CLUSTER, CLIENT, "pi-1")
    sent = decode(output.payload)
    assert sent.header.stage_index == 3
    assert sent.tensors["logits"].shape == (2, 4)


def test_a_copy_of_an_attempt_in_work_waits_with_it_and_is_not_computed(bench: Bench) -> None:
    bench.process(bench.message(), label="first")
    bench.process(bench.message(), label="copy")
    assert bench.engine.runs == 1
    assert len(bench.outputs) == 1
    assert bench.acked == []
    accept(bench)
    assert sorted(bench.acked) == ["copy", "first"]
    assert bench.counters.snapshot().duplicates == 1


def test_a_copy_of_a_finished_attempt_is_published_again_and_not_computed(bench: Bench) -> None:
    bench.process(bench.message(), label="first")
    accept(bench)
    bench.process(bench.message(), label="copy")
    assert bench.engine.runs == 1
    assert [output.payload for output in bench.outputs] == [bench.outputs[0].payload] * 2
    assert bench.acked == ["first"]
    accept(bench)
    assert bench.acked == ["first", "copy"]


def test_a_copy_of_a_forgotten_attempt_is_computed_again(bench: Bench) -> None:
    for seq in range(5):  # more than the outputs kept
        bench.process(bench.message(seq))
        accept(bench)
    bench.process(bench.message(0))
    assert bench.engine.runs == 6
    np.testing.assert_array_equal(
        decode(bench.outputs[-1].payload).tensors["hidden_1"],
        decode(bench.outputs[0].payload).tensors["hidden_1"],
    )


def test_a_new_attempt_passes_even_when_the_earlier_one_was_finished(bench: Bench) -> None:
    """Its output may have been lost behind us."""
    bench.process(bench.message(), label="first")
    accept(bench)
    bench.process(bench.message(attempt=1), label="second")
    assert bench.engine.runs == 2
    assert [decode(output.payload).header.attempt for output in bench.outputs] == [0, 1]
    accept(bench)
    assert bench.acked == ["first", "second"]


def test_a_new_attempt_passes_while_the_earlier_one_is_in_work(bench: Bench) -> None:
    bench.process(bench.message(), label="first")
    bench.process(bench.message(attempt=1), label="second")
    assert len(bench.outputs) == 2
    accept(bench, 1)
    assert bench.acked == ["second"]


def test_an_attempt_whose_output_was_lost_can_come_again(bench: Bench) -> None:
    bench.process(bench.message(), label="first")
    bench.connection.automatic = True
    bench.outputs[0].future.set_exception(BrokerUnreachableError("gone"))
    assert bench.runner.outputs_waiting() == 0
    bench.process(bench.message(), label="again")
    assert len(bench.outputs) == 2
    assert bench.acked == ["first", "again"]


def test_the_counters_tell_what_was_done(bench: Bench) -> None:
    bench.connection.automatic = True
    sizes = [len(bench.message(seq, images=seq + 1)) for seq in range(3)]
    for seq in range(3):
        bench.process(bench.message(seq, images=seq + 1))
    counts = bench.counters.snapshot()
    assert (counts.batches, counts.images, counts.published) == (3, 6, 3)
    assert counts.bytes_in == sum(sizes)
    assert counts.bytes_out == sum(len(output.payload) for output in bench.outputs)
    assert counts.compute_s > 0
    assert (counts.rejected, counts.nacks, counts.duplicates) == (0, 0, 0)


def test_the_engine_sees_read_only_views_of_the_message(bench: Bench) -> None:
    seen: list[np.ndarray] = []
    run = bench.engine.run

    def watched(inputs: dict[str, np.ndarray]) -> object:
        seen.extend(inputs.values())
        return run(inputs)

    bench.engine.run = watched  # type: ignore[method-assign, assignment]
    bench.process(bench.message())
    assert not seen[0].flags.writeable


def test_what_is_remembered_is_bounded(bench: Bench) -> None:
    seen = SeenBatches(outputs_kept=2)
    for epoch in range(EPOCHS_REMEMBERED + 10):
        seen.is_stale(bench.header(batch_id=BatchId(epoch, 5), low=5))
    assert len(seen._low["pi-0"]) == EPOCHS_REMEMBERED
    newest = EPOCHS_REMEMBERED + 9
    assert seen.is_stale(bench.header(batch_id=BatchId(newest, 4), low=0))
    for seq in range(10):
        key = AttemptKey("c", ("pi-1",), 1, seq, 0)
        seen.begin(key, bench.delivery(b""), Output("t", b"x"))
        assert seen.end(key)
    assert [
        seen.outputs_of(AttemptKey("c", ("pi-1",), 1, s, 0)) is not None for s in range(10)
    ] == [False] * 8 + [
        True,
        True,
    ]
    assert seen.in_work() == 0
