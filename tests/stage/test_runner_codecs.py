"""A stage takes its inputs in the codec of its plan and no other, and compresses its outputs."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.activation import decode, encode
from contract.codec import CODECS, Codec, compress, expand
from contract.nack import NackReason
from tests.stage.harness import Bench, GemmEngine, hidden, loaded_stage, make_bench, pictures
from tests.tiny import tiny_weights

LOSSY: list[Codec] = ["float16", "int8", "int8-per-channel"]


def process(bench: Bench, codec: Codec, tensors: Any = None, seq: int = 0) -> None:
    """Send the stage a batch, its tensors by default as ``codec`` makes them."""
    if tensors is None:
        tensors = compress(codec, {"hidden_0": hidden(2, seq)})
    bench.process(encode(bench.header(seq, codec=codec), tensors))


def answers_a_good_batch(bench: Bench) -> None:
    given, own = (bench.plan.stages[index].codec for index in (0, 1))
    before = len(bench.outputs)
    process(bench, given, seq=1000)
    assert len(bench.outputs) == before + 1
    header, tensors = decode(bench.outputs[-1].payload, bench.plan.max_message_bytes())
    arrived = expand(
        given, bench.plan.stages[1].inputs, compress(given, {"hidden_0": hidden(2, 1000)})
    )
    expected = compress(own, {"hidden_1": np.maximum(arrived["hidden_0"] @ tiny_weights()[1], 0)})
    assert header.codec == own
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor)


@pytest.mark.parametrize(("given", "own"), list(itertools.product(CODECS, CODECS)))
def test_inputs_and_outputs_travel_as_the_plan_says(
    tmp_path: Path, given: Codec, own: Codec
) -> None:
    bench = make_bench(tmp_path, codecs=(given, own))
    answers_a_good_batch(bench)
    assert bench.nacks == []
    assert bench.acked == ["input"]


def test_the_first_stage_takes_its_inputs_and_the_last_gives_its_results_as_they_are(
    tmp_path: Path,
) -> None:
    bench = make_bench(tmp_path, codecs=("int8", "float16"))
    bench.runner.load(loaded_stage(bench.plan, 0, GemmEngine(0)))
    route = ("pi-1", "pi-8", "pi-9")
    message = encode(bench.header(index=0, route=route), {"image": pictures(2)})
    bench.process(message, bench.topic(sender="client-1", stage=0))
    last_stage = loaded_stage(bench.plan, 2, GemmEngine(2))
    bench.runner.load(replace(last_stage, earlier_feeders=frozenset({"pi-8"})))
    sent = compress("float16", {"hidden_1": np.ones((2, 12), np.float32)})
    message = encode(bench.header(1, index=2, route=route[::-1], codec="float16"), sent)
    bench.process(message, bench.topic(sender="pi-8", stage=2))
    first, last = (decode(output.payload) for output in bench.outputs)
    assert (first.header.codec, last.header.codec) == ("int8", "float32")
    assert list(last.tensors) == ["logits"]
    assert last.tensors["logits"].dtype == np.float32


@pytest.mark.parametrize(("expected", "actual"), list(itertools.permutations(CODECS, 2)))
def test_inputs_in_another_codec_are_refused(
    tmp_path: Path, expected: Codec, actual: Codec
) -> None:
    bench = make_bench(tmp_path, codecs=(expected, "float32"))
    process(bench, actual)
    [nack] = bench.nacks
    assert nack.reason is NackReason.INVALID
    assert f"codec {expected}, got {actual}" in nack.detail
    assert bench.acked == ["input"]
    assert bench.engine.runs == 0
    answers_a_good_batch(bench)


def test_inputs_of_the_first_stage_in_a_codec_are_refused(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, codecs=("int8", "int8"))
    bench.runner.load(loaded_stage(bench.plan, 0, GemmEngine(0)))
    header = bench.header(index=0, route=("pi-1", "pi-8", "pi-9"), codec="int8")
    bench.process(encode(header, {"image": pictures(2)}), bench.topic("client-1", stage=0))
    assert [nack.reason for nack in bench.nacks] == [NackReason.INVALID]


NUMBERS = np.ones((2, 16), np.int8)
BROKEN: dict[str, tuple[Codec, dict[str, np.ndarray]]] = {
    "float32 that says it is float16": ("float16", {"hidden_0": hidden(2)}),
    "halves that are not finite": ("float16", {"hidden_0": np.full((2, 16), np.inf, np.float16)}),
    "numbers without scales": ("int8", {"hidden_0": NUMBERS}),
    "scales without numbers": ("int8", {"hidden_0.scale": np.ones(2, np.float32)}),
    "a scale that is not a number": (
        "int8",
        {"hidden_0": NUMBERS, "hidden_0.scale": np.full(2, np.nan, np.float32)},
    ),
    "a negative scale": (
        "int8-per-channel",
        {"hidden_0": NUMBERS, "hidden_0.scale": np.full(2, -1, np.float32)},
    ),
    "scales for another batch": (
        "int8",
        {"hidden_0": NUMBERS, "hidden_0.scale": np.ones(3, np.float32)},
    ),
    "another shape": (
        "int8",
        {"hidden_0": NUMBERS[:, :15], "hidden_0.scale": np.ones(2, np.float32)},
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_tensors_that_the_codec_does_not_make_are_refused(tmp_path: Path, kind: str) -> None:
    codec, tensors = BROKEN[kind]
    bench = make_bench(tmp_path, codecs=(codec, "int8"))
    process(bench, codec, tensors)
    [nack] = bench.nacks
    assert nack.reason is NackReason.INVALID
    assert "stage 1 on pi-1, input" in nack.detail
    assert bench.acked == ["input"]
    assert bench.engine.runs == 0
    answers_a_good_batch(bench)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_the_codec_cannot_carry_is_told_and_survived(
    tmp_path: Path, codec: Codec, value: float
) -> None:
    bench = make_bench(tmp_path, codecs=("float32", codec))
    output = np.ones((2, 12), np.float32)
    output[1, 3] = value
    bench.engine.answers = {"hidden_1": output}
    process(bench, "float32")
    [nack] = bench.nacks
    assert nack.reason is NackReason.ENGINE_FAILED
    assert f"{value} at (1, 3)" in nack.detail
    assert bench.acked == ["input"]
    assert bench.outputs == []
    assert bench.counters.snapshot().batches == 0
    bench.engine.answers = None
    answers_a_good_batch(bench)


def test_as_they_are_outputs_carry_anything(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.engine.answers = {"hidden_1": np.full((2, 12), np.nan, np.float32)}
    process(bench, "float32")
    assert np.isnan(decode(bench.outputs[0].payload).tensors["hidden_1"]).all()
