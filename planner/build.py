"""Builds a plan: cuts the model, writes the shards, verifies them as written, writes the plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import onnx
import onnxruntime

from contract.errors import ModelError
from contract.plan import (
    PLAN_FILE,
    Plan,
    Replica,
    StageSpec,
    Verification,
    compute_plan_id,
    place,
)
from contract.topics import DEFAULT_CLUSTER, check_name
from planner.balance import Method, partition, stage_times
from planner.graph import SegmentedGraph, edge_bytes
from planner.importers.imported_model import ImportedModel
from planner.onnx_graph import to_bytes
from planner.profiler import Profile, profile_segments
from planner.progress import Progress, silent
from planner.refine import correct, refine
from planner.split import StageGraph, boundaries_of, find_tied_weights, split_graph
from planner.verify import describe, verify_shards
from shards.manifest import ShardManifest
from shards.writer import ShardFiles, atomic_folder, write_manifest, write_shard_files


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is to be.

    ``cuts`` names the cut points; without it, ``num_stages`` stages are chosen by ``partitioner``.
    With a ``profile``, it alone decides and predicts; without, everything is measured here.
    ``devices`` are the replicas of every stage in order; a plan without them is placed later. The
    plan goes to ``out_dir / name``.
    """

    name: str
    out_dir: Path
    num_stages: int = 1
    cuts: tuple[str, ...] | None = None
    batch_size: int = 1
    threads: int = 1
    partitioner: Method = "exact"
    profile: Profile | None = None
    devices: tuple[tuple[Replica, ...], ...] | None = None
    cluster: str = DEFAULT_CLUSTER


def build_plan(
    imported: ImportedModel,
    graph: SegmentedGraph,
    request: PlanRequest,
    progress: Progress = silent,
) -> Plan:
    """Write ``plan.json`` and one folder per stage, and return the plan.

    A folder of that name is replaced, and only by a plan that was verified.

    Args:
        imported: the model that ``graph`` was made from; its reference verifies the plan.
        graph: the canonical model in segments.
        request: see there.
        progress: called as steps advance.

    Raises:
        PartitionError: fewer segments than stages, or no such cut point.
        VerificationError: the shards do not compute what the reference computes.
        SettingsError: the name cannot be a folder and a level of a topic.
        PlanError: the devices do not fit the stages.
    """
    check_name("plan", request.name)
    if request.batch_size < 1:
        raise ModelError(f"batch size {request.batch_size}, expected at least 1")
    boundaries, profile = choose_boundaries(graph, request, progress)
    stages = split_graph(graph, boundaries)
    predictions = stage_times(profile.segment_ms, edge_bytes(graph, request.batch_size), boundaries)
    with atomic_folder(request.out_dir / request.name) as folder:
        specs = []
        for index, (stage, predicted_ms) in enumerate(zip(stages, predictions, strict=True)):
            progress("writing shards", index / len(stages))
            files = write_stage(folder / f"stage-{index}", stage)
            specs.append(_stage_spec(index, stage, files, predicted_ms))
        plan = _assemble_plan(graph, request, specs, find_tied_weights(stages))
        for spec in plan.stages:
            write_manifest(folder / spec.folder, _manifest(plan, spec))
        progress("verifying the written shards", 0.0)
        comparison = verify_shards(folder, plan, imported.reference, request.threads)
        verification = describe(comparison, imported.reference_name)
        plan = plan.model_copy(update={"verification": verification})
        if request.devices is not None:
            plan = place(plan, request.devices, request.cluster)
        (folder / PLAN_FILE).write_text(plan.to_json() + "\n")
        progress("verifying the written shards", 1.0)
    return plan


def choose_boundaries(
    graph: SegmentedGraph, request: PlanRequest, progress: Progress = silent
) -> tuple[list[int], Profile]:
    """Segment boundaries as requested, and the segment times that predict the stages.

    Raises:
        PartitionError: there are fewer segments than stages, or no such cut point.
    """
    if request.cuts is None:
        # Before anything is measured: are there enough cut points at all?
        flat = [1.0] * graph.num_segments
        edges = edge_bytes(graph, request.batch_size)
        boundaries = partition(flat, edges, request.num_stages, "even")
    else:
        boundaries = boundaries_of(graph, request.cuts)
    fixed = request.cuts is not None or request.partitioner == "even"
    if request.profile is not None:
        if not fixed:
            times = request.profile.segment_ms
            boundaries = partition(times, edges, request.num_stages, request.partitioner)
        return boundaries, request.profile
    profile = profile_segments(graph, request.batch_size, request.threads, progress=progress)
    if fixed:
        return boundaries, correct(graph, profile, tuple(boundaries))[0]
    refined = refine(graph, profile, request.num_stages, request.partitioner, progress=progress)
    return list(refined.boundaries), refined.profile


def write_stage(folder: Path, stage: StageGraph) -> ShardFiles:
    """Write a stage's graph and weights into ``folder``, which is made."""
    return write_shard_files(folder, stage.weights, lambda places: to_bytes(stage.model(places)))


def engine_versions() -> dict[str, str]:
    """What a plan built here is verified with."""
    return {
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "numpy": numpy.__version__,
    }


def _stage_spec(index: int, stage: StageGraph, files: ShardFiles, predicted_ms: float) -> StageSpec:
    return StageSpec(
        stage_index=index,
        first_segment=stage.first_segment,
        end_segment=stage.end_segment,
        inputs=stage.inputs,
        outputs=stage.outputs,
        graph=files.graph,
        weights=files.weights,
        weight_bytes=stage.weight_bytes,
        flops_per_image=stage.flops_per_image,
        predicted_ms_per_batch=round(predicted_ms, 4),
    )


def _assemble_plan(
    graph: SegmentedGraph,
    request: PlanRequest,
    specs: Sequence[StageSpec],
    tied_weights: tuple[str, ...],
) -> Plan:
    """The plan before its verification, which needs a plan to read the shards by."""
    unverified = Verification(
        reference="",
        images=0,
        tolerance=0.0,
        max_abs_difference=0.0,
        max_abs_reference=0.0,
        spread_between_images=0.0,
        top1_agreement=0.0,
        conclusive=False,
    )
    info = graph.model.info
    return Plan(
        plan_id=compute_plan_id(info.digest, specs),
        name=request.name,
        model=info,
        batch_size=request.batch_size,
        stages=tuple(specs),
        tied_weights=tied_weights,
        verified_with=engine_versions(),
        verification=unverified,
    )


def _manifest(plan: Plan, spec: StageSpec) -> ShardManifest:
    return ShardManifest(
        plan_id=plan.plan_id,
        stage_index=spec.stage_index,
        graph=spec.graph,
        weights=spec.weights,
        inputs=spec.inputs,
        outputs=spec.outputs,
        verified_with=plan.verified_with,
    )
