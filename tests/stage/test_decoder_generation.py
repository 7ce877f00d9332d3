"""Stages generate what the whole model would: any number of stages, rows, chunks and samplings."""

from pathlib import Path

import numpy as np
import pytest

from contract import topics
from contract.decoder import Finish, Sampling, Step
from tests.hand_decoder import TINY, hand_greedy, prompts
from tests.stage.decoder_ring import Ring, expected_text, messages_of, padded
from tests.stage.harness import CLIENT, CLUSTER


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 5, 13])
def test_greedy_tokens_are_those_of_the_whole_model(
    tmp_path: Path, num_stages: int, length: int
) -> None:
    ring = Ring(tmp_path, num_stages, end_tokens=())
    prompt = prompts(2, length)
    ring.prompt(prompt, (Sampling(max_position=length + 16),) * 2)
    ring.run()
    np.testing.assert_array_equal(ring.text(), hand_greedy(prompt, 16))
    assert ring.nacks == []
    assert [result.position for result in ring.results] == list(range(length, length + 16))
    ends = [result.finished.tolist() for result in ring.results]
    assert ends == [[0, 0]] * 15 + [[Finish.MAX_POSITION] * 2]


SAMPLINGS = {
    "warm": Sampling(temperature=1.5, seed=7, max_position=40),
    "top-k": Sampling(temperature=2.0, top_k=5, seed=8, max_position=40),
    "top-p": Sampling(temperature=2.0, top_p=0.7, seed=9, max_position=40),
    "penalised": Sampling(repetition_penalty=1.7, max_position=40),
    "all": Sampling(2.0, 20, 0.9, 1.3, seed=10, max_position=40),
}


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_sampled_tokens_are_those_of_the_whole_model(tmp_path: Path, kind: str) -> None:
    ring = Ring(tmp_path)
    prompt, sampling = prompts(1, 9), (SAMPLINGS[kind],)
    ring.prompt(prompt, sampling)
    ring.run()
    assert ring.text().tolist() == expected_text(prompt, sampling)


def test_each_row_has_a_sampling_and_an_end_of_its_own(tmp_path: Path) -> None:
    end_tokens = (13, 22)
    ring = Ring(tmp_path, end_tokens=end_tokens)
    prompt = prompts(3, 6)
    sampling = (
        Sampling(temperature=3.0, seed=4, max_position=44),
        Sampling(max_position=12),
        Sampling(temperature=3.0, seed=6, max_position=44),
    )
    expected = expected_text(prompt, sampling, end_tokens)
    assert len({len(row) for row in expected}) == 3, "rows that end alike show nothing"
    ring.prompt(prompt, sampling)
    ring.run()
    np.testing.assert_array_equal(ring.text(), padded(expected))
    for row, tokens in enumerate(expected):
        ends = [int(result.finished[row]) for result in ring.results]
        at = len(tokens) - 1
        kind = Finish.END_TOKEN if tokens[-1] in end_tokens else Finish.MAX_POSITION
        assert ends == [0] * at + [kind] * (len(ends) - at)


def test_a_sequence_ends_where_its_caches_do(tmp_path: Path) -> None:
    ring = Ring(tmp_path, end_tokens=())
    ring.prompt(prompts(1, 40))
    ring.run()
    assert ring.text().shape == (1, TINY.context - 40)
    assert ring.results[-1].finished.tolist() == [Finish.MAX_POSITION]
    assert ring.nacks == []


def test_sequences_in_flight_together_do_not_mix(tmp_path: Path) -> None:
    ring = Ring(tmp_path, end_tokens=())
    lengths, limit = [3, 8, 11, 5], 20
    for seq, length in enumerate(lengths):
        ring.prompt(prompts(1, length, seq), (Sampling(max_position=limit),), seq=seq)
    ring.run()
    for seq, length in enumerate(lengths):
        expected = hand_greedy(prompts(1, length, seq), limit - length)
        np.testing.assert_array_equal(ring.text(seq=seq), expected)
    assert {device.runner.cache_usage.evictions for device in ring.devices.values()} == {0}


@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_the_hidden_state_travels_as_the_plan_says_and_what_is_beside_it_as_it_is(
    tmp_path: Path, codec: str
) -> None:
    ring = Ring(tmp_path, codec=codec)
    sampling = (Sampling(temperature=1.0, seed=2**52 + 1, max_position=12),)
    ring.prompt(prompts(1, 7), sampling)
    ring.run()
    for message in messages_of(ring.devices["pi-0"], "input"):
        assert message.header.codec == codec
        assert message.tensors["hidden_1"].dtype == np.dtype(codec)
        assert message.tensors["sampling"].tolist() == [list(map(float, sampling[0]))]
        assert message.tensors["token_ids"].dtype == np.int64
    assert ring.text().shape == (1, 5)


def test_a_chunk_after_which_nothing_is_wanted_ends_at_the_last_stage(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    ring.send(prompts(1, 5), Step(0), label="chunk")
    ring.run()
    assert ring.devices["pi-2"].connection.published == []
    assert sorted(ring.acked) == ["chunk", "pi-1", "pi-2"]
    assert ring.devices["pi-2"].counters.snapshot().tokens == 5


def test_tokens_go_to_the_client_and_back_to_the_first_stage_and_carry_their_place(
    tmp_path: Path,
) -> None:
    ring = Ring(tmp_path, end_tokens=())
    ring.prompt(prompts(2, 4), (Sampling(max_position=6, seed=5),) * 2, seq=3, attempt=2, low=1)
    ring.run()
    last = ring.devices["pi-2"]
    first, second = (p for p in last.connection.published if "/result/" in p.topic)
    assert first.topic == topics.result_topic(CLUSTER, CLIENT, "pi-2")
    [back] = (p for p in last.connection.published if "/in/" in p.topic)
    assert back.topic == topics.input_topic(CLUSTER, "pi-0", ring.plan.plan_id, 3, "pi-2")
    [told] = messages_of(last, "input")
    assert Step.of(dict(told.header.scalars)) == Step(4, wants=True, returned=True)
    assert (told.header.stage_index, told.header.trace) == (0, ())
    assert (told.header.batch_id.seq, told.header.attempt, told.header.low) == (3, 2, 1)
    assert told.header.sender == "pi-2"
    np.testing.assert_array_equal(told.tensors["token_ids"], ring.results[0].ids)
    for result, position in zip(ring.results, (4, 5), strict=True):
        assert Step.of(dict(result.header.scalars)) == Step(position)
        assert (result.header.stage_index, len(result.header.trace)) == (3, 3)
    assert second.qos == 1


def test_a_stage_counts_its_tokens_and_its_caches(tmp_path: Path) -> None:
    ring = Ring(tmp_path, end_tokens=())
    ring.prompt(prompts(2, 7), (Sampling(max_position=10),) * 2)
    ring.run()
    for index, device in enumerate(ring.devices.values()):
        counts = device.counters.snapshot()
        assert (counts.batches, counts.images, counts.tokens) == (4, 8, 2 * 9)  # the last is told
        usage, cache = device.runner.cache_usage, ring.plan.stages[index].cache
        assert usage.sequences == 2
        assert usage.size_bytes == 2 * cache.bytes_per_token * TINY.context
        device.runner.load(None)
        assert device.runner.cache_usage is None
