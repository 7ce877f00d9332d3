"""Builds a plan of a language model: as for images, but verified token by token."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from contract.errors import ModelError
from contract.plan import Codec, Plan, save_plan
from contract.topics import check_name
from planner.build import place_choice, write_shards
from planner.choose import choose
from planner.graph import SegmentedGraph
from planner.importers.transformers_directory import ImportedDecoder
from planner.language.perplexity import verify_on_text
from planner.language.profile import profile_blocks
from planner.language.verify import verify_decoder
from planner.progress import Progress, silent
from planner.request import PlanRequest
from planner.room import room_for_plan
from shards.writer import atomic_folder

TOKENIZER = "tokenizer"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a client needs to turn text into tokens and back; the first is the one that is hashed."""


def build_decoder_plan(
    imported: ImportedDecoder,
    graph: SegmentedGraph,
    request: PlanRequest,
    progress: Progress = silent,
    text: str | None = None,
) -> Plan:
    """Write ``plan.json``, one folder per stage and ``tokenizer/``, and return the plan.

    A folder of that name is replaced, and only by a plan that was verified. The perplexity of a
    quantised model is measured on ``text``, or on a part of this project's documentation, or on
    random tokens.

    Raises:
        PartitionError: fewer blocks than stages, no such cut point, or nothing that fits.
        VerificationError: the shards do not compute what transformers computes, or what quantised
            weights compute is something else.
        SettingsError: the name cannot be a folder and a level of a topic.
        PlanError: the devices do not fit the stages, or the folder cannot be written.
    """
    check_name("plan", request.name)
    if request.batch_size < 1:
        raise ModelError(f"batch size {request.batch_size}, expected at least 1")
    profile = request.profile or profile_blocks(
        graph, request.batch_size, request.threads, progress=progress
    )
    as_they_are: Codec = "float32"
    request = replace(request, profile=profile, refine=False, codec=as_they_are)
    (choice,) = choose(graph, request, progress)
    room = room_for_plan(request.out_dir, graph.model.weight_bytes)
    with room, atomic_folder(request.out_dir / request.name) as folder:
        progress("writing shards", 0.0)
        plan = write_shards(graph, request, choice, folder)
        progress("verifying the written shards", 0.0)
        verification = verify_decoder(folder, plan, imported, graph, request.threads, progress)
        sha256 = copy_tokenizer(imported.folder, folder / TOKENIZER)
        assert plan.decoding is not None
        checked = None
        if plan.decoding.quantisation != "none":
            checked = verify_on_text(imported, graph, text, request.threads, progress)
        learnt = {"tokenizer_sha256": sha256, "text": checked}
        decoding = plan.decoding.model_copy(update=learnt)
        plan = plan.model_copy(update={"verification": verification, "decoding": decoding})
        plan = place_choice(plan, graph, request, choice)
        save_plan(plan, folder)
        progress("verifying the written shards", 1.0)
    return plan


def copy_tokenizer(source: Path, target: Path) -> str:
    """Copy what there is; the sha256 of tokenizer.json, empty where there is none."""
    there = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if TOKENIZER_FILES[0] not in there:
        return ""
    target.mkdir()
    for name in there:
        shutil.copyfile(source / name, target / name)
    return hashlib.sha256((target / TOKENIZER_FILES[0]).read_bytes()).hexdigest()
