"""Imports a language model from a transformers directory: `hf:DIR`.

config.json says what it is, transformers' own code how it computes, safetensors what with. The
weights stay where they are until a shard is written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import ModelError, WeightsError
from planner.export import quiet
from planner.language.checkpoint import Checkpoint, open_checkpoint
from planner.language.decoder_export import ExportedDecoder, export_decoder
from planner.language.facts import (
    CONFIG,
    DecoderFacts,
    check_directory,
    check_ropes,
    facts_of,
)
from planner.language.memory import give_large_blocks_back
from planner.language.stand_ins import import_transformers
from planner.progress import Progress, silent

SCHEME = "hf:"
SHOWN = 3
"""Names in an error: enough to recognise the pattern."""


@dataclass(frozen=True)
class ImportedDecoder:
    """A language model as a graph without weights, and where its weights lie.

    ``keys`` names the tensor of ``checkpoint`` for each parameter. ``config`` is transformers'.
    """

    name: str
    folder: Path
    facts: DecoderFacts
    config: Any
    exported: ExportedDecoder
    checkpoint: Checkpoint
    keys: Mapping[str, str]


def import_transformers_directory(folder: Path, progress: Progress = silent) -> ImportedDecoder:
    """Import the model in ``folder``; no weight is read but those that stand there twice.

    Raises:
        ModelError: it is not a decoder that can be planned; says what was found.
        WeightsError: the weights are not there, are a pickle, or do not fit the configuration.
    """
    give_large_blocks_back()  # matrices are read and forgotten, one after another
    document = check_directory(folder)
    checkpoint = open_checkpoint(folder)
    config = _read_config(folder)
    facts = facts_of(config, folder, document)
    progress("exporting the model", 0.0)
    exported = export_decoder(config, facts)
    progress("exporting the model", 1.0)
    keys = find_keys(exported, checkpoint, _base_prefix(config))
    return ImportedDecoder(
        f"{SCHEME}{folder.resolve().name}", folder, facts, config, exported, checkpoint, keys
    )


def find_keys(exported: ExportedDecoder, checkpoint: Checkpoint, prefix: str) -> dict[str, str]:
    """The tensor of the checkpoint for each parameter, by the first of its names that is there.

    A checkpoint of the model without its head lacks ``prefix``, such as ``transformer.``.

    Raises:
        WeightsError: tensors are missing, have other shapes, belong to no parameter, or are two
            for one parameter and differ.
    """
    keys, missing, misshapen = {}, [], []
    used = set()
    twice: list[tuple[str, str]] = []
    for name, shape in exported.parameters.items():
        names = exported.aliases.get(name, (name,))
        candidates = [each for alias in names for each in (alias, alias.removeprefix(prefix))]
        there = [each for each in dict.fromkeys(candidates) if each in checkpoint.entries]
        if not there:
            missing.append(name)
            continue
        keys[name] = there[0]
        used.update(there)
        twice += [(there[0], other) for other in there[1:]]
        if checkpoint.shape(there[0]) != shape:
            misshapen.append(f"{there[0]} is {checkpoint.shape(there[0])}, expected {shape}")
    where = checkpoint.folder
    if missing:
        raise WeightsError(
            f"{where}: {len(missing)} tensors are missing ({_some(missing)}); expected weights "
            f"that fit {CONFIG}"
        )
    if misshapen:
        raise WeightsError(
            f"{where}: tensor {_some(misshapen)}; expected weights that fit {CONFIG}"
        )
    extra = [name for name in checkpoint.entries if name not in used and not _is_harmless(name)]
    if extra:
        raise WeightsError(
            f"{where}: {len(extra)} tensors belong to nothing in the model ({_some(extra)}); it "
            f"would compute something else than its authors meant. Check {CONFIG}"
        )
    for one, other in twice:
        _check_same(checkpoint, one, other, prefix)
    return keys


def _check_same(checkpoint: Checkpoint, one: str, other: str, prefix: str) -> None:
    """Refuse two tensors for one parameter that differ: versions of transformers disagree then."""
    if checkpoint.are_equal(one, other):
        return
    why = (
        f"{CONFIG} ties them to be one (by `tie_word_embeddings`, perhaps its default); if the "
        f"model was trained with both, set tie_word_embeddings to false in {CONFIG}"
    )
    if one.removeprefix(prefix) == other.removeprefix(prefix):
        why = "both are names of one parameter; copy the model's own weights again"
    raise WeightsError(f"{checkpoint.folder}: tensors {one} and {other} differ, but {why}")


_HARMLESS = re.compile(
    r"(^|\.)(attn\.(bias|masked_bias)|rotary_emb\.(inv_freq|original_inv_freq))$"
)
"""Masks and frequencies that older versions stored, and every version computes."""


def _is_harmless(name: str) -> bool:
    return _HARMLESS.search(name) is not None


def _read_config(folder: Path) -> Any:
    """The configuration as transformers understands it, checked once more."""
    library = import_transformers()
    try:
        with quiet():
            config = library.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            filled_in = (config.to_dict(), config.get_text_config().to_dict())
    except Exception as error:  # whatever its classes raise about a document
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{folder / CONFIG}: transformers {library.__version__} does not take it: "
            f"{reason:.300}; expected a decoder such as GPT-2, Llama, Qwen or Mistral"
        ) from error
    # Its classes fill in and rename: Phi-3's make longrope of "su" and of "yarn".
    for document in filled_in:
        check_ropes(folder / CONFIG, document, f" for transformers {library.__version__}")
    return config


def _base_prefix(config: Any) -> str:
    library = import_transformers()
    model = library.AutoModelForCausalLM._model_mapping.get(type(config), None)
    return f"{getattr(model, 'base_model_prefix', 'model')}."


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, …"
