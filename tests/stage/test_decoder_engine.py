"""The engine of language models: right in every chunking, and no copy of a cache for a token."""

from pathlib import Path

import numpy as np
import pytest

from contract.errors import EngineError
from contract.plan import Plan
from shards.reader import Shard, read_shard
from stage.engine import load_decoder
from stage.engines.onnx_decoder import OnnxDecoderEngine
from tests.hand_decoder import TINY, Shape, hand_logits, make_hand_plan, prompts


def shard_of(folder: Path, plan: Plan, index: int = 0) -> Shard:
    return read_shard(folder / plan.name / plan.stages[index].folder, plan, index)


def whole(folder: Path, shape: Shape = TINY) -> OnnxDecoderEngine:
    plan = make_hand_plan(folder, 1, shape=shape)
    cache, decoding = plan.stages[0].cache, plan.decoding
    assert cache is not None
    assert decoding is not None
    return OnnxDecoderEngine(shard_of(folder, plan), cache, decoding, 1, True)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("chunks", [[30], [1] * 30, [7, 1, 5, 1, 1, 3, 12], [1, 16, 12, 1]])
def test_every_chunking_gives_the_logits_of_the_whole_model(
    tmp_path: Path, rows: int, chunks: list[int]
) -> None:
    engine, tokens = whole(tmp_path), prompts(rows, 30)
    expected, block, position = hand_logits(tokens), engine.allocate(rows), 0
    for count in chunks:
        given = {"token_ids": tokens[:, position : position + count]}
        logits = engine.step(block, given, position)["logits"]
        position += count
        np.testing.assert_allclose(logits, expected[:, position - 1], rtol=0, atol=2e-5)


def test_a_block_that_held_other_sequences_is_as_good_as_new(tmp_path: Path) -> None:
    engine = whole(tmp_path)
    block = engine.allocate(2)
    engine.step(block, {"token_ids": prompts(2, 40, 1)}, 0)
    for memory in block.layers.values():
        memory[:, :, 40:] = np.nan
    tokens = prompts(2, 9, 2)
    logits = engine.step(block, {"token_ids": tokens}, 0)["logits"]
    np.testing.assert_allclose(logits, hand_logits(tokens)[:, -1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_token_writes_its_own_position_in_place_and_nothing_else(
    tmp_path: Path, rows: int
) -> None:
    engine = whole(tmp_path)
    block = engine.allocate(rows)
    engine.step(block, {"token_ids": prompts(rows, 8)}, 0)
    addresses = {name: memory.ctypes.data for name, memory in block.layers.items()}
    for memory in block.layers.values():
        memory[:, :, 9:] = 123.0
    before = {name: memory.copy() for name, memory in block.layers.items()}
    engine.step(block, {"token_ids": prompts(rows, 1)}, 8)
    assert {n: memory.ctypes.data for n, memory in block.layers.items()} == addresses
    for name, memory in block.layers.items():
        changed = (memory != before[name]).any(axis=(0, 1, 3))
        assert np.flatnonzero(changed).tolist() == [8]
        assert (memory[:, :, 8] != 0).any(axis=(1, 2)).all(), "every row has its own"


def test_past_and_present_are_bound_to_the_memory_of_the_block(tmp_path: Path) -> None:
    engine = whole(tmp_path)
    block = engine.allocate(1)
    engine.step(block, {"token_ids": prompts(1, 1)}, 0)
    assert block.one_token is not None
    bound = block.one_token._binding
    outputs = {
        value.name: ort.data_ptr()
        for value, ort in zip(engine._session.get_outputs(), _in_order(bound), strict=True)
    }
    for name, memory in block.layers.items():
        assert outputs[f"present_{name}"] == memory.ctypes.data


def _in_order(binding: object) -> list[object]:
    return list(binding.get_outputs())  # type: ignore[attr-defined]


def test_a_token_s_binding_is_made_once(tmp_path: Path) -> None:
    engine = whole(tmp_path)
    block = engine.allocate(1)
    engine.step(block, {"token_ids": prompts(1, 1)}, 0)
    binding = block.one_token
    for position in range(1, 5):
        engine.step(block, {"token_ids": prompts(1, 1, position)}, position)
    assert block.one_token is binding


def test_an_input_is_not_changed_and_may_be_read_only(tmp_path: Path) -> None:
    engine, tokens = whole(tmp_path), prompts(2, 4)
    tokens.flags.writeable = False
    engine.step(engine.allocate(2), {"token_ids": tokens}, 0)
    np.testing.assert_array_equal(tokens, prompts(2, 4))


def test_what_onnxruntime_refuses_is_an_error_of_the_engine_and_survived(tmp_path: Path) -> None:
    engine = whole(tmp_path)
    block = engine.allocate(1)
    with pytest.raises(EngineError, match="failed to run"):
        engine.step(block, {"token_ids": np.full((1, 2), 10**6, np.int64)}, 0)
    tokens = prompts(1, 3)
    logits = engine.step(block, {"token_ids": tokens}, 0)["logits"]
    np.testing.assert_allclose(logits, hand_logits(tokens)[:, -1], rtol=0, atol=2e-5)


def test_caches_that_no_memory_holds_are_told_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = whole(tmp_path)

    def no_memory(*_arguments: object, **_named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "zeros", no_memory)
    with pytest.raises(EngineError, match="--context"):
        engine.allocate(3)


def test_a_graph_with_other_caches_than_the_plan_says_is_not_loaded(tmp_path: Path) -> None:
    plan = make_hand_plan(tmp_path, 1)
    cache, decoding = plan.stages[0].cache, plan.decoding
    assert cache is not None
    assert decoding is not None
    fewer = cache.model_copy(update={"layers": cache.layers - 1})
    with pytest.raises(EngineError, match=r"past_key\.3"):
        OnnxDecoderEngine(shard_of(tmp_path, plan), fewer, decoding, 1, True)


@pytest.mark.parametrize("name", ["torch", "identity"])
def test_other_engines_say_that_they_run_no_language_models(tmp_path: Path, name: str) -> None:
    plan = make_hand_plan(tmp_path, 1)
    cache, decoding = plan.stages[0].cache, plan.decoding
    assert cache is not None
    assert decoding is not None
    with pytest.raises(EngineError, match=f"engine {name}: it runs no language models.*onnxrun"):
        load_decoder(name, shard_of(tmp_path, plan), cache, decoding, 1)
