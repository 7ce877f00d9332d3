"""Decoders of every family: cut into stages they write what transformers writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from contract.decoder import IDS, CacheSpec, Decoding, TokenInput
from contract.errors import ModelError, PartitionError, VerificationError
from contract.plan import load_plan
from planner.language import verify
from planner.language.checkpoint import open_checkpoint
from tests.decoder_models import KINDS, save_tokenizer
from tests.decoder_shards import DecoderShards
from tests.planner.decoders import exported
from tests.tiny_decoder import DECODING

TOLERANCE = 1e-3
LONG = Decoding(context_tokens=576, sequences=2, chunk_tokens=64)


def check_against_transformers(
    kind: str,
    folder: Path,
    stages: int,
    decoding: Decoding = DECODING,
    prompts: tuple[int, ...] = (1, 9, 40),
    decoded: int = 12,
    **changes: object,
) -> None:
    model = exported(kind, **changes)
    plan = model.plan(folder, stages, decoding)
    generator = np.random.default_rng(stages)
    for prompt_tokens in prompts:
        prompt = generator.integers(3, 320, (2, prompt_tokens))
        shards = DecoderShards(folder / plan.name, plan, rows=2)
        tokens, seen = shards.generate(prompt, decoded)
        whole = np.concatenate([prompt, tokens], axis=1)
        expected = model.logits(whole)[:, prompt_tokens - 1 : -1]
        difference = np.abs(np.stack(seen, axis=1) - expected).max()
        assert difference < TOLERANCE, (prompt_tokens, difference)
        second, first = np.sort(expected, -1)[..., -2:].transpose(2, 0, 1)
        clear = first - second > 2 * TOLERANCE
        assert clear.mean() > 0.9  # else it would say nothing
        assert (tokens == expected.argmax(-1))[clear].all()


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_write_what_transformers_writes(kind: str, stages: int, tmp_path: Path) -> None:
    check_against_transformers(kind, tmp_path, stages)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_stages_write_64_tokens_after_prompts_of_1_17_and_500_as_transformers_writes_them(
    kind: str, stages: int, tmp_path: Path
) -> None:
    check_against_transformers(kind, tmp_path, stages, LONG, prompts=(1, 17, 500), decoded=64)


def test_scaled_rotary_embeddings_are_the_models_own(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    check_against_transformers("llama", tmp_path, 2, rope_parameters=rope)
    ids = np.random.default_rng(0).integers(3, 320, (1, 40))
    plain, scaled = (exported("llama", **kw) for kw in ({}, {"rope_parameters": rope}))
    # The very same weights (one seed): were the scaling lost on the way, nobody would notice.
    assert np.abs(plain.logits(ids) - scaled.logits(ids)).max() > 0.1


def test_a_plan_says_what_its_messages_and_caches_are(tmp_path: Path) -> None:
    plan = exported("llama").plan(tmp_path, 3)
    assert load_plan(tmp_path / plan.name) == plan
    model = plan.model.input
    assert isinstance(model, TokenInput)
    assert (model.architecture, model.vocabulary_size) == ("LlamaForCausalLM", 320)
    assert model.end_tokens == (1, 2)  # generation_config.json goes before config.json
    assert [stage.cache for stage in plan.stages] == [
        CacheSpec(layers=1, kv_heads=2, head_size=16),
        CacheSpec(layers=2, kv_heads=2, head_size=16),
        CacheSpec(layers=1, kv_heads=2, head_size=16),
    ]
    assert plan.stages[0].inputs[0].describe() == "int64 (batch, tokens)"
    assert plan.stages[0].inputs[0].name == IDS
    assert plan.stages[1].inputs[0].describe() == "float32 (batch, tokens, 64)"
    assert plan.stages[2].outputs[0].describe() == "float32 (batch, 320)"
    assert plan.decoding is not None
    assert plan.decoding.tokenizer_sha256 == ""
    assert plan.verification.conclusive


def test_the_tokenizer_goes_with_the_plan(tmp_path: Path) -> None:
    model = exported("llama")
    path = save_tokenizer(model.folder)
    (model.folder / "chat_template.jinja").write_text("{{ messages }}")
    try:
        plan = model.plan(tmp_path, 1)
    finally:
        path.unlink()
    copied = tmp_path / plan.name / "tokenizer"
    assert {each.name for each in copied.iterdir()} == {"tokenizer.json", "chat_template.jinja"}
    assert plan.decoding is not None
    assert len(plan.decoding.tokenizer_sha256) == 64


def test_a_tied_embedding_is_stored_once_in_a_stage_and_named_where_two_hold_it(
    tmp_path: Path,
) -> None:
    model = exported("gpt2")
    parameters = sum(int(np.prod(shape)) for shape in model.imported.exported.parameters.values())
    whole = model.plan(tmp_path / "one", 1)
    assert whole.stages[0].weight_bytes == 4 * parameters
    assert whole.tied_weights == ()
    cut = model.plan(tmp_path / "two", 2)
    assert cut.tied_weights == ("transformer.wte.weight",)
    assert sum(stage.weight_bytes for stage in cut.stages) == 4 * (parameters + 320 * 64)


def test_cuts_lie_between_blocks_and_are_called_like_them() -> None:
    graph = exported("qwen3").graph()
    assert [cut.scope for cut in graph.cuts] == [f"model.layers.{index}" for index in range(3)]
    assert {cut.spec.shape for cut in graph.cuts} == {("batch", "tokens", 64)}


def test_a_cut_is_asked_for_by_the_name_of_a_block(tmp_path: Path) -> None:
    plan = exported("llama").plan(tmp_path, cuts=("model.layers.2",), num_stages=None)
    assert [stage.cache.layers for stage in plan.stages if stage.cache] == [3, 1]
    with pytest.raises(PartitionError, match="not a cut point"):
        exported("llama").plan(tmp_path, cuts=("model.layers.7",), num_stages=None)


def test_no_stage_is_without_a_block(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="at most 4 stages"):
        exported("llama").plan(tmp_path, 5)


def test_a_context_longer_than_the_models_positions_is_refused() -> None:
    long = DECODING.model_copy(update={"context_tokens": 641})
    with pytest.raises(ModelError, match=r"--context 641 is longer than the model's 640"):
        exported("llama").graph(long)


def test_the_same_model_gives_the_same_plan_and_another_context_another_one(
    tmp_path: Path,
) -> None:
    model = exported("llama")
    first = model.plan(tmp_path / "a", 2)
    model.graphs.clear()
    assert model.plan(tmp_path / "b", 2).plan_id == first.plan_id
    other = DECODING.model_copy(update={"context_tokens": 64})
    assert model.plan(tmp_path / "c", 2, other).plan_id != first.plan_id


def test_shards_that_compute_something_else_are_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = verify.run_sessions

    def disturbed(*args: object) -> list[dict[int, np.ndarray]]:
        found = original(*args)  # type: ignore[arg-type]
        found[0][0][0, 5] += 0.002
        return found

    monkeypatch.setattr(verify, "run_sessions", disturbed)
    with pytest.raises(VerificationError, match="nothing was written"):
        exported("llama").plan(tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_every_precision_are_read_as_torch_reads_them(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    special = torch.tensor([0.0, -0.0, 1e-8, 65504.0, -3.140625, float("inf")])
    tensors = {
        "a": torch.randn(7, 5).to(dtype),
        "b": special.to(dtype),
        "c": torch.ones(()).to(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(checkpoint.read(name), tensor.float().numpy(), strict=True)


def test_prompts_shorter_than_a_chunk_and_contexts_of_few_tokens_are_verified_too() -> None:
    assert [s.messages(16) for s in verify.sessions_of(context=4, chunk=16)] == [
        [(0, 1), (1, 2), (2, 3), (3, 4)],
        [(0, 4)],
        [(0, 4)],
    ]
    (_, _, longest) = verify.sessions_of(context=96, chunk=16)
    assert longest.messages(16)[:4] == [(0, 16), (16, 32), (32, 35), (35, 36)]
    Decoding(context_tokens=4, sequences=1, chunk_tokens=4)
