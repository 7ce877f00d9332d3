"""What a transformers directory says of its model, checked before anything is built. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import ModelError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ROPES = ("rope_parameters", "rope_scaling")
"""Where a configuration tells of rotary embeddings, by transformers' present and former name."""
GROWING_ROPES = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies depend on how long the text is: a graph has only one."""


@dataclass(frozen=True)
class DecoderFacts:
    """The sizes of a decoder, and the tokens that end a text."""

    architecture: str
    model_type: str
    vocabulary_size: int
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    max_positions: int
    end_tokens: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file.

    Raises:
        ModelError: it cannot be read, or is not one.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, RecursionError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return document


def check_directory(folder: Path) -> dict[str, Any]:
    """The directory's config.json, if it is that of a model that can be planned.

    Raises:
        ModelError: no such directory, no config.json, or something in it that would be computed
            otherwise than the model's authors did, without anybody noticing.
    """
    if not folder.is_dir():
        raise ModelError(f"hf:{folder}: no such directory; expected one with {CONFIG}")
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"hf:{folder}: no {CONFIG}; expected the directory of a transformers model, as "
            "save_pretrained() writes it"
        )
    config = read_json(folder / CONFIG)
    if "model_type" not in config:
        raise ModelError(f"{folder / CONFIG}: says no `model_type`; expected e.g. llama or gpt2")
    if config.get("auto_map"):
        raise ModelError(
            f"{folder / CONFIG}: the model brings code of its own (`auto_map`), which is not run; "
            "use a model whose code is part of transformers"
        )
    if config.get("quantization_config"):
        raise ModelError(
            f"{folder / CONFIG}: the weights are quantised already; use the model as it was before "
            "and --quantise int8 or int4"
        )
    check_ropes(folder / CONFIG, config)
    return config


def check_ropes(path: Path, config: Mapping[str, Any], as_read: str = "") -> None:
    """Look at all rotary embeddings that a configuration tells of, also those of its text model.

    Args:
        path: of the file, for the error.
        config: what it says.
        as_read: for the error, if that is not the file's own words: whose they are.

    Raises:
        ModelError: they change with the length of the text, or are no JSON objects.
    """
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise ModelError(f"{path}: text_config {text!r:.80}, expected a JSON object")
    for owner in (config, text):
        for name in ROPES:
            rope = owner.get(name) or {}
            if not isinstance(rope, dict):
                raise ModelError(f"{path}: {name} {rope!r:.80}, expected a JSON object")
            # Layers of several kinds have one each.
            for each in (rope, *(its for its in rope.values() if isinstance(its, dict))):
                kind = each.get("rope_type", each.get("type"))
                if kind in GROWING_ROPES:
                    raise ModelError(
                        f"{path}: rotary embeddings of type {kind!r}{as_read} change with the "
                        "length of the text, which one graph cannot; expected default, linear, "
                        "yarn or llama3"
                    )


def end_tokens(folder: Path, config: Mapping[str, Any], vocabulary_size: int) -> tuple[int, ...]:
    """The ids of tokens that end a text: generation_config.json goes before config.json.

    Raises:
        ModelError: they are not whole numbers, or not in the vocabulary.
    """
    path, found = folder / CONFIG, config.get("eos_token_id")
    if (folder / GENERATION_CONFIG).is_file():
        generation = read_json(folder / GENERATION_CONFIG)
        if "eos_token_id" in generation:
            path, found = folder / GENERATION_CONFIG, generation["eos_token_id"]
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(each) is int and each >= 0 for each in ids):
        raise ModelError(f"{path}: eos_token_id {found!r:.80}, expected whole numbers")
    if max(ids, default=-1) >= vocabulary_size:
        raise ModelError(
            f"{path}: eos_token_id {found!r:.80}, expected tokens below {vocabulary_size:,} (the "
            f"vocab_size of {CONFIG}): no text would end with it; copy the model's own files "
            "again, or correct it"
        )
    return tuple(dict.fromkeys(ids))


def facts_of(config: Any, folder: Path, document: Mapping[str, Any]) -> DecoderFacts:
    """The facts from transformers' own configuration object, which knows all defaults.

    Raises:
        ModelError: a size is missing, or none that a model can have.
    """
    path = folder / CONFIG
    text = config.get_text_config()
    names = document.get("architectures") or [config.model_type]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ModelError(f"{path}: architectures {names!r:.80}, expected a list of names")
    try:
        heads = int(text.num_attention_heads)
        hidden = int(text.hidden_size)
        vocabulary_size = int(text.vocab_size)
        facts = DecoderFacts(
            architecture=names[0],
            model_type=str(config.model_type),
            vocabulary_size=vocabulary_size,
            layers=int(text.num_hidden_layers),
            hidden_size=hidden,
            heads=heads,
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_size=int(getattr(text, "head_dim", None) or hidden // max(heads, 1)),
            max_positions=int(text.max_position_embeddings),
            end_tokens=end_tokens(folder, document, vocabulary_size),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: not that of a decoder ({error}); expected a language model such as GPT-2, "
            "Llama, Qwen or Mistral"
        ) from error
    sizes = {name: size for name, size in vars(facts).items() if isinstance(size, int)}
    empty = [f"{name.replace('_', ' ')} {size}" for name, size in sizes.items() if size < 1]
    if empty:
        raise ModelError(
            f"{path}: {', '.join(empty)}, expected at least 1; copy the model's own {CONFIG} again"
        )
    return facts
