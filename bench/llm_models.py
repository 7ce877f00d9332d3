"""The language models that the benchmarks decode: random weights, made once, in several plans."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from contract.decoder import Decoding, Quantisation
from contract.errors import PlanError
from contract.plan import Plan, Replica, load_plan
from planner.graph import segment_graph
from planner.importers.transformers_directory import (
    ImportedDecoder,
    import_transformers_directory,
)
from planner.language.build import build_decoder_plan
from planner.language.canonical import canonicalise_decoder
from planner.language.stand_ins import import_transformers
from planner.request import PlanRequest

SHAPES: Mapping[str, Mapping[str, int]] = {
    "gpt2-124m": {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "tiny": {"vocab_size": 320, "n_embd": 64, "n_layer": 4, "n_head": 4},
}
Ids = npt.NDArray[np.int64]
MAX_POSITIONS = 1024
SEQUENCES = 4
CHUNK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class TextPlans:
    """One model: in two stages and whole, both in float32 and in int4; ``model`` is its
    transformers directory.

    All plans lie in ``folder``, under their names.
    """

    model: Path
    folder: Path
    pipeline: Plan
    whole: Plan
    pipeline_int4: Plan
    whole_int4: Plan

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return int(json.loads((self.model / "config.json").read_text())["vocab_size"])


def prepare_text(shape: str, folder: Path) -> TextPlans:
    """Make the model and its plans, those that are not there yet."""
    model = folder / f"model-{shape}"
    if not (model / "generation_config.json").is_file():
        _make_model(SHAPES[shape], model)
    # Exported once, and only if a plan is missing.
    imported = cache(lambda: import_transformers_directory(model))
    return TextPlans(
        model=model,
        folder=folder,
        pipeline=_plan(imported, f"{shape}-2", folder, 2, "none"),
        whole=_plan(imported, f"{shape}-1", folder, 1, "none"),
        pipeline_int4=_plan(imported, f"{shape}-2-int4", folder, 2, "int4"),
        whole_int4=_plan(imported, f"{shape}-1-int4", folder, 1, "int4"),
    )


def prompt_ids(rows: int, tokens: int, vocabulary: int) -> Ids:
    """What all sides go on with, int64 (rows, tokens): seeded, a row the same beside others."""
    return np.stack(
        [np.random.default_rng(row).integers(0, vocabulary, tokens) for row in range(rows)]
    )


def _make_model(shape: Mapping[str, int], folder: Path) -> None:
    library: Any = import_transformers()
    torch.manual_seed(0)
    config = library.GPT2Config(**shape, n_positions=MAX_POSITIONS)
    library.GPT2LMHeadModel(config).save_pretrained(folder)
    # No token ends a text: every side decodes as many as it is asked for. Written last.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": []}))


def _plan(
    imports: Callable[[], ImportedDecoder],
    name: str,
    folder: Path,
    stages: int,
    quantisation: Quantisation,
) -> Plan:
    try:
        return load_plan(folder / name)
    except PlanError:
        pass  # not there, or of an older version
    imported = imports()
    decoding = Decoding(
        context_tokens=MAX_POSITIONS,
        sequences=SEQUENCES,
        chunk_tokens=CHUNK_TOKENS,
        quantisation=quantisation,
    )
    graph = segment_graph(canonicalise_decoder(imported, decoding))
    request = PlanRequest(
        name=name,
        out_dir=folder,
        num_stages=stages,
        batch_size=SEQUENCES,
        devices=tuple((Replica(device=f"{name}-{index}"),) for index in range(stages)),
    )
    return build_decoder_plan(imported, graph, request)
