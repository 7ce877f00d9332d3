"""Transformers directories that cannot be planned: each is refused with what is wrong with it."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contract.errors import ModelError, SettingsError, WeightsError
from planner.importers import import_model
from planner.importers.transformers_directory import find_keys, import_transformers_directory
from planner.language.checkpoint import open_checkpoint
from planner.language.facts import end_tokens
from tests.planner.decoders import Exported, exported

SMALL_BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
}
LLAMA = {"model_type": "llama", "hidden_size": 64}
PHI3 = {
    "model_type": "phi3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": 512,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def phi3(kind: str) -> dict[str, object]:
    rope = {
        "type": kind,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 512,
    }
    return {**PHI3, "rope_scaling": rope}


def folder_with(tmp_path: Path, config: object) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        import_transformers_directory(tmp_path / "nowhere")


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json; expected the directory of a trans"):
        import_transformers_directory(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "cannot be read as JSON"),
        pytest.param("[" * 100_000, "cannot be read as JSON", id="nested too deeply"),
        ("[]", "expected a JSON object"),
        ({"hidden_size": 64}, "says no `model_type`"),
        ({**LLAMA, "auto_map": {"AutoModel": "x.Y"}}, "brings code of its own"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "quantised already"),
        ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' change with"),
        ({**LLAMA, "rope_parameters": {"rope_type": "longrope"}}, "'longrope' change with"),
        ({**LLAMA, "rope_scaling": "dynamic"}, "rope_scaling 'dynamic', expected a JSON object"),
        ({**LLAMA, "rope_scaling": [{"type": "linear"}]}, "expected a JSON object"),
        ({**LLAMA, "rope_parameters": {"full": {"rope_type": "dynamic"}}}, "'dynamic' change with"),
        ({**LLAMA, "text_config": {"rope_scaling": {"type": "longrope"}}}, "'longrope' change"),
        (phi3("longrope"), "'longrope' change with"),
        (phi3("su"), "'longrope' for transformers .* change with"),
        (phi3("yarn"), "'longrope' for transformers .* change with"),
        ({**LLAMA, "rope_scaling": {"type": "su"}}, "not take|cannot build"),
        ({**LLAMA, "text_config": "text"}, "text_config 'text', expected a JSON object"),
        (
            {**LLAMA, "num_attention_heads": 0},
            "heads 0, kv heads 0, .*expected at least 1|not take",
        ),
        ({**LLAMA, "num_hidden_layers": 0}, "layers 0, expected at least 1"),
        ({**LLAMA, "architectures": "LlamaForCausalLM"}, "expected a list of names"),
        ({"model_type": "no-such-model"}, "does not take it"),
        ({"model_type": "vit"}, "not that of a decoder|cannot build"),
        ({**LLAMA, "vocab_size": 50, "eos_token_id": 50}, "expected tokens below 50"),
        (SMALL_BERT, "a mask of its own, which GroupQueryAttention does not"),
    ],
)
def test_configurations_that_cannot_be_planned(tmp_path: Path, config: object, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        import_transformers_directory(folder_with(tmp_path, config))


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    folder_with(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no weights; expected model\.safetensors"):
        import_transformers_directory(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(WeightsError, match=r"a pickle.*save_pretrained"):
        import_transformers_directory(tmp_path)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({}, "expected an object with `weight_map`"),
        pytest.param("[" * 100_000, "expected an object with", id="nested too deeply"),
        ({"weight_map": {"a": "gone.safetensors"}}, "names gone.safetensors, which is not there"),
        ({"weight_map": {"a": "../x.safetensors"}}, "expected a plain name"),
    ],
)
def test_an_index_that_leads_nowhere(tmp_path: Path, index: object, reason: str) -> None:
    text = index if isinstance(index, str) else json.dumps(index)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=reason):
        open_checkpoint(tmp_path)


def test_weights_in_several_files_are_found(tmp_path: Path) -> None:
    save_file({"a": np.full(3, 1.5, np.float16)}, tmp_path / "one.safetensors")
    save_file({"b": np.full((2, 2), 2.5, np.float32)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.read("a").tolist() == [1.5] * 3
    assert checkpoint.read("b").tolist() == [[2.5] * 2] * 2
    assert checkpoint.provenance == "one.safetensors and 1 more"


def test_weights_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(4, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="tensor a is I8"):
        open_checkpoint(tmp_path).read("a")


def changed(model: Exported, folder: Path, change: str) -> str:
    """What is said when a copy of the model's weights is changed."""
    weights = load_file(model.folder / "model.safetensors")
    match change:
        case "missing":
            del weights["model.layers.1.mlp.up_proj.weight"]
        case "misshapen":
            weights["model.norm.weight"] = np.zeros(7, np.float32)
        case "extra":
            weights["model.layers.0.mlp.up_proj.bias"] = np.zeros(96, np.float32)
        case "harmless":
            weights["model.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
        case "headless":
            weights = {name.removeprefix("model."): array for name, array in weights.items()}
        case "stored twice":
            weights["norm.weight"] = weights["model.norm.weight"].copy()
        case "of two minds":
            weights["norm.weight"] = weights["model.norm.weight"] + np.float32(1)
    save_file(weights, folder / "model.safetensors")
    try:
        keys = find_keys(model.imported.exported, open_checkpoint(folder), "model.")
    except WeightsError as error:
        return str(error)
    assert keys.keys() == model.imported.exported.parameters.keys()
    return ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("none", ""),
        ("missing", "1 tensors are missing (model.layers.1.mlp.up_proj.weight)"),
        ("misshapen", "model.norm.weight is (7,), expected (64,)"),
        ("extra", "1 tensors belong to nothing in the model (model.layers.0.mlp.up_proj.bias)"),
        ("harmless", ""),
        ("headless", ""),
        ("stored twice", ""),
        ("of two minds", "model.norm.weight and norm.weight differ, but both are names of one par"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(tmp_path: Path, change: str, told: str) -> None:
    said = changed(exported("llama"), tmp_path, change)
    assert told in said
    assert bool(told) == bool(said)


@pytest.mark.parametrize(
    ("element", "told"),
    [
        (None, ""),
        (0, "tensors model.embed_tokens.weight and lm_head.weight differ, but config.json ties th"),
        (-1, "set tie_word_embeddings to false in config.json"),
    ],
)
def test_a_head_of_its_own_is_not_replaced_by_the_embedding_that_it_is_tied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, element: int | None, told: str
) -> None:
    monkeypatch.setattr("planner.language.checkpoint.PIECE_ELEMENTS", 1000)
    model = exported("qwen2")
    weights = load_file(model.folder / "model.safetensors")
    assert "lm_head.weight" not in weights  # tied
    head = weights["model.embed_tokens.weight"].copy()
    if element is not None:
        head.flat[element] += 1
    save_file({**weights, "lm_head.weight": head}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    said = ""
    try:
        keys = find_keys(model.imported.exported, checkpoint, "model.")
        assert keys["model.embed_tokens.weight"] == "model.embed_tokens.weight"
    except WeightsError as error:
        said = str(error)
    assert told in said
    assert bool(told) == bool(said)


def test_tensors_are_compared_as_numbers_whatever_they_are_stored_as(tmp_path: Path) -> None:
    ones = np.ones((2, 3), np.float32)
    tensors = {"a": ones, "b": ones.astype(np.float16), "c": ones.T, "d": 2 * ones}
    save_file(
        {name: np.ascontiguousarray(each) for name, each in tensors.items()},
        tmp_path / "model.safetensors",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert [checkpoint.are_equal("a", other) for other in "abcd"] == [True, True, False, False]


def test_comparing_two_tensors_takes_the_memory_of_pieces(tmp_path: Path) -> None:
    array = np.zeros(1 << 24, np.float32)
    save_file({"a": array, "b": array}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    tracemalloc.start()
    try:
        assert checkpoint.are_equal("a", "b")
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < array.nbytes / 2


def test_commands_for_images_say_what_to_do_with_a_language_model() -> None:
    with pytest.raises(ModelError, match="shardline generate"):
        import_model("hf:somewhere")


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, ()),
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": [5, 6, 5]}, (5, 6)),
        ({"eos_token_id": 2}, {}, (2,)),
    ],
)
def test_end_tokens(tmp_path: Path, config: object, generation: object, expected: object) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_tokens(tmp_path, config, 7) == expected  # type: ignore[arg-type]


def test_end_tokens_in_a_file_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ' + "[" * 100_000)
    with pytest.raises(ModelError, match=r"generation_config\.json: cannot be read as JSON"):
        end_tokens(tmp_path, {}, 7)


@pytest.mark.parametrize("found", ["</s>", -1, [2, -1], True, 2.0])
def test_end_tokens_that_are_no_tokens(tmp_path: Path, found: object) -> None:
    with pytest.raises(ModelError, match="expected whole numbers"):
        end_tokens(tmp_path, {"eos_token_id": found}, 7)


@pytest.mark.parametrize("found", [7, [2, 5000]])
def test_end_tokens_that_the_vocabulary_does_not_have(tmp_path: Path, found: object) -> None:
    with pytest.raises(ModelError, match=r"/config\.json: eos_token_id .* expected tokens below 7"):
        end_tokens(tmp_path, {"eos_token_id": found}, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": found}))
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id .* below 7"):
        end_tokens(tmp_path, {"eos_token_id": 2}, 7)


def test_a_text_that_cannot_be_read(tmp_path: Path) -> None:
    from planner.language.perplexity import read_text, windows_of

    (tmp_path / "t").write_bytes(b"\xff\xfe\xff")
    for path in (tmp_path / "t", tmp_path / "nowhere"):
        with pytest.raises(SettingsError, match="cannot be read as UTF-8"):
            read_text(path)
    with pytest.raises(SettingsError, match="9 tokens, expected at least 32"):
        windows_of(list(range(9)), 32)
