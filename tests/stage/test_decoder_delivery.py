"""Every token once, whatever comes twice, late, or not at all; caches are kept, freed and lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from broker.transport import PublishOutcome
from contract import topics
from contract.activation import decode, encode
from contract.decoder import Sampling, Step
from contract.errors import BrokerUnreachableError, EngineError
from contract.nack import NackReason
from tests.hand_decoder import hand_greedy, prompts
from tests.stage.decoder_ring import Ring, expected_text, messages_of
from tests.stage.harness import Published

LIMIT = (Sampling(max_position=20),)


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path, end_tokens=())


def reasons(ring: Ring) -> list[NackReason]:
    return [nack.reason for nack in ring.nacks]


def runs(ring: Ring) -> list[int]:
    return [device.counters.snapshot().batches for device in ring.devices.values()]


def inputs_of(ring: Ring, device: str, sent_by: str) -> list[Published]:
    published = ring.devices[sent_by].connection.published
    return [p for p in published if topics.parse_topic(p.topic).to == device]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_both_outputs_are_with_the_broker_before_the_input_is_acknowledged(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    ring = Ring(tmp_path, 1)
    ring.prompt(prompts(1, 3))
    outputs = ring.devices["pi-0"].connection.published
    kinds = [topics.parse_topic(output.topic).kind for output in outputs]
    assert kinds == ["input", "result"]
    outputs[order[0]].future.set_result(PublishOutcome.ACCEPTED)
    assert ring.acked == []
    outputs[order[1]].future.set_result(PublishOutcome.ACCEPTED)
    assert ring.acked == ["input"]


def test_one_output_refused_by_the_broker_is_told_when_the_other_is_settled(tmp_path: Path) -> None:
    ring = Ring(tmp_path, 1)
    ring.prompt(prompts(1, 3))
    back, result = ring.devices["pi-0"].connection.published
    back.future.set_exception(BrokerUnreachableError("gone"))
    assert ring.acked == []
    result.future.set_result(PublishOutcome.ACCEPTED)
    ring.run()
    assert reasons(ring) == [NackReason.PUBLISH_REFUSED]
    assert ring.acked.count("input") == 1


@pytest.mark.parametrize("device", ["pi-0", "pi-1", "pi-2"])
def test_every_message_twice_gives_every_token_once(ring: Ring, device: str) -> None:
    ring.intercept = lambda message: (
        [message, message] if topics.parse_topic(message.topic).to == device else [message]
    )
    prompt = prompts(2, 9)
    ring.prompt(prompt, LIMIT * 2)
    ring.run()
    np.testing.assert_array_equal(ring.text(), hand_greedy(prompt, 11))
    assert ring.nacks == []
    assert len(set(runs(ring))) == 1, "copies are not computed"


def test_a_repeated_input_is_acknowledged_and_goes_no_second_time_round(ring: Ring) -> None:
    ring.send(prompts(1, 4), Step(0), label="first")
    ring.send(prompts(1, 4), Step(0), label="copy")
    device = ring.devices["pi-0"]
    assert runs(ring)[0] == 1
    assert len(device.connection.published) == 1
    assert ring.acked == [], "its output is not with the broker yet"
    ring.run()
    assert {"first", "copy"} <= set(ring.acked)
    ring.send(prompts(1, 4), Step(0), label="later copy")
    assert "later copy" in ring.acked
    assert runs(ring)[0] == 1
    assert len(device.connection.published) == 1
    assert device.counters.snapshot().duplicates == 2


@pytest.mark.parametrize(("device", "sender"), [("pi-2", "pi-1"), ("pi-0", "pi-2")])
def test_an_input_of_long_ago_ends_where_it_comes_again(
    ring: Ring, device: str, sender: str
) -> None:
    """Nothing but the cache remembers it."""
    prompt = prompts(1, 5)
    ring.prompt(prompt, LIMIT)
    ring.run(results=6)
    early = inputs_of(ring, device, sender)[1]
    before, told = runs(ring)[ring.route.index(device)], len(ring.results)
    ring.devices[device].waiting()
    ring.deliver(device, early.topic, early.payload, "early")
    assert runs(ring)[ring.route.index(device)] == before
    assert ring.devices[device].waiting() == []
    assert ring.acked[-1] == "early"
    assert len(ring.results) == told
    assert ring.nacks == []


def test_an_input_that_does_not_begin_where_the_cache_ends_finds_it_lost(ring: Ring) -> None:
    prompt = prompts(1, 12)
    ring.send(prompt[:, :5], Step(0))
    ring.run()
    ring.send(prompt[:, 6:8], Step(6))
    ring.send(prompt[:, 4:8], Step(4))
    ring.send(prompt[:, 5:8] * 0 + 7, Step(2))
    ring.run()
    assert reasons(ring) == [NackReason.CACHE_LOST] * 3
    assert "holds 5 tokens" in ring.nacks[0].detail
    assert ring.acked.count("input") == 4
    ring.send(prompt[:, 5:8], Step(5, wants=True), LIMIT)
    ring.run(results=1)
    np.testing.assert_array_equal(ring.text(), hand_greedy(prompt[:, :8], 1))


def test_an_unknown_sequence_is_lost_and_no_cache_is_made_for_it(ring: Ring) -> None:
    ring.send(prompts(1, 3), Step(7))
    ring.run()
    assert reasons(ring) == [NackReason.CACHE_LOST]
    assert ring.devices["pi-0"].runner.cache_usage.sequences == 0


@pytest.mark.parametrize("device", ["pi-0", "pi-1", "pi-2"])
@pytest.mark.parametrize("after", [1, 6])
def test_after_a_stage_has_restarted_a_new_attempt_goes_on_identically(
    ring: Ring, device: str, after: int
) -> None:
    prompt, sampling = prompts(1, 8), (Sampling(2.0, 0, 0.95, 1.1, seed=3, max_position=24),)
    ring.prompt(prompt, sampling)
    ring.run(results=after)
    ring.restart(device)
    ring.run()
    assert reasons(ring) == [NackReason.CACHE_LOST]
    assert ring.nacks[0].stage_index == ring.route.index(device)
    so_far = np.concatenate([prompt, ring.text()], axis=1)
    ring.prompt(so_far, sampling, attempt=1)
    ring.run()
    assert reasons(ring) == [NackReason.CACHE_LOST]
    assert ring.text().tolist() == expected_text(prompt, sampling, ())
    for each in ring.devices.values():
        assert each.runner.cache_usage.sequences == 1, "the first attempt's cache is freed"


def test_a_row_that_has_ended_stays_ended_in_a_new_attempt_if_its_limit_says_so(
    ring: Ring,
) -> None:
    prompt = prompts(2, 6)
    ring.prompt(prompt, (Sampling(max_position=6), Sampling(max_position=9)), attempt=1)
    ring.run()
    assert [result.finished.tolist() for result in ring.results] == [[2, 0], [2, 0], [2, 2]]
    np.testing.assert_array_equal(ring.text()[0], np.repeat(prompt[0, -1:], 3))
    np.testing.assert_array_equal(ring.text()[1:], hand_greedy(prompt[1:], 3))


def test_an_earlier_attempt_that_comes_late_is_stale_and_frees_nothing(ring: Ring) -> None:
    prompt = prompts(1, 4)
    ring.send(prompt, Step(0, wants=True), LIMIT, attempt=2)
    ring.run(results=1)
    ring.send(prompt, Step(0, wants=True), LIMIT, attempt=1)
    ring.run()
    assert reasons(ring) == [NackReason.STALE]
    np.testing.assert_array_equal(ring.text(attempt=2), hand_greedy(prompt, 16))


def test_the_least_recent_sequences_are_evicted_and_told_so(ring: Ring) -> None:
    """Room for four sequences: the fifth takes that of whoever was silent longest."""
    for seq in range(4):
        ring.send(prompts(1, 4, seq), Step(0), seq=seq)
    ring.send(prompts(1, 5, 0)[:, 4:], Step(4), seq=0)
    ring.send(prompts(1, 4, 4), Step(0), seq=4)
    ring.run()
    for seq in (1, 0, 2, 3, 4):
        ring.send(prompts(1, 1, 9), Step(5 if seq == 0 else 4), seq=seq)
    ring.run()
    assert [(nack.reason, nack.seq) for nack in ring.nacks] == [(NackReason.CACHE_LOST, 1)]
    for device in ring.devices.values():
        assert device.runner.cache_usage.evictions == 1
        assert device.runner.cache_usage.sequences == 4


def test_ended_sequences_are_the_first_to_go(ring: Ring) -> None:
    ring.send(prompts(1, 3, 0), Step(0), seq=0)
    ring.send(prompts(1, 3, 1), Step(0), seq=1)
    ring.prompt(prompts(2, 3, 2), (Sampling(max_position=4),) * 2, seq=2)  # ends with this token
    ring.send(prompts(1, 3, 3), Step(0), seq=3)
    ring.run()
    last = ring.devices["pi-2"]
    assert last.runner.cache_usage.evictions == 1
    hidden = [p for p in inputs_of(ring, "pi-2", "pi-1") if b'"seq":"0"' in p.payload[:400]]
    ring.deliver("pi-2", hidden[0].topic, _moved(hidden[0].payload, 3), "goes on")
    ring.run()
    assert ring.nacks == []


def _moved(payload: bytes, position: int) -> bytes:
    header, tensors = decode(payload)
    step = Step.of(dict(header.scalars))._replace(position=position)
    return encode(replace(header, scalars=step.scalars()), tensors)


def test_what_is_below_the_low_watermark_is_forgotten_by_every_stage(ring: Ring) -> None:
    for seq in range(3):
        ring.send(prompts(1, 4, seq), Step(0), seq=seq)
    ring.run()
    ring.send(prompts(1, 4, 3), Step(0), seq=3, low=2)
    ring.run()
    for device in ring.devices.values():
        assert device.runner.cache_usage.sequences == 2
        assert device.runner.cache_usage.evictions == 0


def test_a_token_that_comes_back_for_a_batch_that_its_client_has_closed_is_stale(
    ring: Ring,
) -> None:
    ring.prompt(prompts(1, 4), LIMIT, seq=0)
    ring.run(results=2)
    ring.send(prompts(1, 4, 5), Step(0), seq=5, low=5)
    ring.run()
    assert reasons(ring) == [NackReason.STALE]
    assert ring.events == [], "a batch that has ended is nothing to report"


def test_released_sequences_are_forgotten_and_their_tokens_are_stale(ring: Ring) -> None:
    ring.prompt(prompts(2, 4), LIMIT * 2, attempt=1)
    ring.run(results=3)
    ring.release(attempt=1, label="release")
    ring.run()
    assert "release" in ring.acked
    for device in ring.devices.values():
        usage = device.runner.cache_usage
        assert (usage.sequences, usage.evictions) == (0, 0)
        assert usage.size_bytes > 0, "its memory is kept for the next one"
    assert reasons(ring) == [NackReason.STALE]
    assert ring.events == []
    ring.prompt(prompts(2, 4), LIMIT * 2, attempt=1)
    ring.run()
    assert reasons(ring) == [NackReason.STALE] * 2
    assert ring.devices["pi-0"].runner.cache_usage.sequences == 0
    told = len(ring.results)
    ring.prompt(prompts(2, 4), LIMIT * 2, attempt=2)
    ring.run()
    assert len(ring.results) == told + 16


@pytest.mark.parametrize("steps", range(1, 7))
def test_what_is_released_makes_room_before_a_living_sequence_has_to(
    tmp_path: Path, steps: int
) -> None:
    """Wherever the two stand: the released one may be the more recent of them at later stages."""
    ring = Ring(tmp_path, sequences=2, end_tokens=())
    living = (Sampling(max_position=30),)
    ring.prompt(prompts(1, 4), living, seq=0)
    ring.run(results=steps)
    ring.prompt(prompts(1, 4, 1), living, seq=1)
    ring.run(results=2 * steps)
    ring.release(seq=1)
    ring.prompt(prompts(1, 4, 2), living, seq=2)
    ring.run()
    assert NackReason.CACHE_LOST not in reasons(ring)
    for seq in (0, 2):
        assert ring.text(seq=seq).shape == (1, 26)
    assert {device.runner.cache_usage.evictions for device in ring.devices.values()} == {0}


def test_when_the_client_is_gone_the_ring_ends(ring: Ring) -> None:
    ring.prompt(prompts(1, 4), LIMIT)
    ring.run(results=2)
    ring.client_is_there = False
    ring.run()
    assert max(runs(ring)) < 8, "nobody reads the other twelve"
    assert NackReason.NO_SUBSCRIBER in reasons(ring)


def test_the_same_shard_placed_anew_keeps_its_caches_and_another_does_not(ring: Ring) -> None:
    prompt = prompts(1, 4)
    ring.prompt(prompt, LIMIT)
    ring.run(results=3)
    for device in ring.devices.values():
        loaded = device.runner.loaded
        assert loaded is not None
        device.runner.load(replace(loaded, earlier_feeders=loaded.feeders))
    ring.run(results=6)
    np.testing.assert_array_equal(ring.text(), hand_greedy(prompt, 6))
    runner = ring.devices["pi-1"].runner
    runner.load(ring.loaded(1))
    ring.run()
    assert reasons(ring) == [NackReason.CACHE_LOST]


def test_a_failing_engine_is_told_and_the_sequence_can_go_on(ring: Ring) -> None:
    prompt = prompts(1, 4)
    ring.prompt(prompt, LIMIT)
    ring.run(results=2)
    loaded = ring.devices["pi-1"].runner.loaded
    assert loaded is not None
    engine, step = loaded.engine, loaded.engine.step

    def fail(*_arguments: object) -> None:
        raise EngineError("out of luck")

    engine.step = fail  # type: ignore[method-assign]
    ring.run()
    assert reasons(ring) == [NackReason.ENGINE_FAILED]
    engine.step = step  # type: ignore[method-assign]
    refused = inputs_of(ring, "pi-1", "pi-0")[-1]
    ring.deliver("pi-1", refused.topic, refused.payload)
    ring.run()
    np.testing.assert_array_equal(ring.text(), hand_greedy(prompt, 16))


def test_logits_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    ring = Ring(tmp_path, 1)
    loaded = ring.devices["pi-0"].runner.loaded
    assert loaded is not None
    loaded.engine.step = lambda *_a: {  # type: ignore[method-assign]
        "logits": np.full((1, 37), np.nan, np.float32)
    }
    ring.prompt(prompts(1, 3))
    ring.run()
    assert reasons(ring) == [NackReason.ENGINE_FAILED]
    assert "logits at position 3" in ring.nacks[0].detail
    assert messages_of(ring.devices["pi-0"], "result") == []
