"""Plans of tiny language models, built by the planner from random weights."""

import tempfile
from pathlib import Path

from contract.decoder import Decoding
from contract.plan import Plan
from planner.graph import SegmentedGraph, segment_graph
from planner.importers.transformers_directory import (
    ImportedDecoder,
    import_transformers_directory,
)
from planner.language.build import build_decoder_plan
from planner.language.canonical import canonicalise_decoder
from planner.profiler import Profile
from planner.request import PlanRequest
from tests.decoder_models import save_model

DECODING = Decoding(context_tokens=96, sequences=4, chunk_tokens=16)


def prepare_decoder(
    model: Path, decoding: Decoding = DECODING
) -> tuple[ImportedDecoder, SegmentedGraph]:
    imported = import_transformers_directory(model)
    return imported, segment_graph(canonicalise_decoder(imported, decoding))


def even_profile(graph: SegmentedGraph) -> Profile:
    """Stands in for a measurement: a test cuts at the same places every time."""
    times = tuple(segment.weight_bytes / 1e7 for segment in graph.segments)
    return Profile(times, sum(times), batch_size=1, threads=1, rounds=0)


def build_decoder(
    folder: Path,
    imported: ImportedDecoder,
    graph: SegmentedGraph,
    stages: int,
    **request: object,
) -> Plan:
    settings = {
        "name": "tiny-decoder",
        "out_dir": folder,
        "num_stages": stages,
        "batch_size": 2,
        "profile": even_profile(graph),
        "refine": False,
    }
    merged = PlanRequest(**{**settings, **request})  # type: ignore[arg-type]
    return build_decoder_plan(imported, graph, merged)


def tiny_decoder_plan(
    folder: Path, kind: str = "llama", stages: int = 3, decoding: Decoding = DECODING
) -> Plan:
    """Write a plan of 1 to 4 stages to ``folder/tiny-decoder`` and return it, not placed.

    ``kind`` is one of tests/decoder_models.py: gpt2, llama, qwen2, qwen3, mistral. The model has 4
    blocks, a vocabulary of 320 (end tokens 1 and 2) and random weights.
    """
    with tempfile.TemporaryDirectory() as scratch:
        imported, graph = prepare_decoder(save_model(Path(scratch) / "model", kind), decoding)
        return build_decoder(folder, imported, graph, stages)
