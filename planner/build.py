"""Builds a plan: decides, writes the shards, verifies them as written, writes the plan."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy
import onnx
import onnxruntime

from contract.errors import ModelError, VerificationError, WireFormatError
from contract.plan import (
    Codec,
    CodecVerification,
    Plan,
    StageSpec,
    Verification,
    compute_plan_id,
    place,
    save_plan,
)
from contract.topics import check_name
from planner.choose import Choice, choose, segment_curve
from planner.codec_check import check_codecs
from planner.cost_model import stage_costs
from planner.graph import SegmentedGraph
from planner.importers.imported_model import ImportedModel
from planner.onnx_graph import to_bytes
from planner.predict import replicas
from planner.progress import Progress, silent
from planner.request import Calibration, PlanRequest
from planner.split import StageGraph, find_tied_weights, split_graph
from planner.verify import describe, verification_batch, verify_shards
from shards.manifest import ShardManifest
from shards.writer import ShardFiles, atomic_folder, write_manifest, write_shard_files

CALIBRATION_IMAGES = 32
"""Made-up images on which a lossy codec is judged where nobody gave any."""


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
        PartitionError: fewer segments than stages, no such cut point, or nothing that fits.
        VerificationError: the shards do not compute what the reference computes.
        SettingsError: the name cannot be a folder and a level of a topic.
        PlanError: the devices do not fit the stages.
    """
    check_name("plan", request.name)
    if request.batch_size < 1:
        raise ModelError(f"batch size {request.batch_size}, expected at least 1")
    choices = choose(graph, request, progress)
    with atomic_folder(request.out_dir / request.name) as folder:
        for number, choice in enumerate(choices):
            progress("writing shards", number / len(choices))
            plan = write_shards(graph, request, choice, folder)
            progress("verifying the written shards", 0.0)
            comparison = verify_shards(folder, plan, imported.reference, request.threads)
            check = None
            if not choice.is_lossy:
                break
            progress("measuring what the codecs cost", 0.0)
            check = _check(graph, request, choice, folder, plan)
            if check is not None and _is_good_enough(check, request):
                break
            for spec in plan.stages:
                shutil.rmtree(folder / spec.folder)
        else:
            raise VerificationError(f"plan {request.name}: no choice of codecs is accurate enough")
        verification = describe(comparison, imported.reference_name, check)
        plan = plan.model_copy(update={"verification": verification})
        plan = place_choice(plan, graph, request, choice)
        save_plan(plan, folder)
        progress("verifying the written shards", 1.0)
    return plan


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


def write_shards(graph: SegmentedGraph, request: PlanRequest, choice: Choice, folder: Path) -> Plan:
    """Write the shards of a choice; the plan, not yet verified or placed."""
    stages = split_graph(graph, choice.decision.boundaries)
    problem = choice.decision.problem
    specs = []
    for index, (stage, where) in enumerate(zip(stages, choice.decision.stages, strict=True)):
        files = write_stage(folder / f"stage-{index}", stage)
        device = problem.device(where.devices[0])
        costs = stage_costs(problem, device, where.first, where.end)
        predicted_ms = None if costs is None else costs.processor_ms
        specs.append(_stage_spec(index, stage, files, choice.codecs[index], predicted_ms))
    plan = _assemble_plan(graph, request, specs, find_tied_weights(stages))
    for spec in plan.stages:
        write_manifest(folder / spec.folder, _manifest(plan, spec))
    return plan


def place_choice(plan: Plan, graph: SegmentedGraph, request: PlanRequest, choice: Choice) -> Plan:
    """The plan on its devices, if they are known, with what it is expected to do there."""
    problem = choice.decision.problem
    plan = plan.model_copy(update={"segments": segment_curve(graph, problem)})
    if request.devices is not None:
        return place(plan, request.devices, request.cluster)
    if not choice.site.are_known:
        return plan
    placed = place(plan, replicas(problem, choice.decision.solution), request.cluster)
    report = {"prediction": choice.prediction, "verdict": choice.verdict}
    return placed.model_copy(update=report)


def _check(
    graph: SegmentedGraph, request: PlanRequest, choice: Choice, folder: Path, plan: Plan
) -> CodecVerification | None:
    """What the codecs of a choice cost in accuracy; None where they cannot carry the values."""
    model_input, spec = graph.model.info.input, graph.model.inputs[0]
    calibration = request.calibration or Calibration(
        verification_batch(model_input, spec, CALIBRATION_IMAGES)
    )
    images = calibration.images
    labels = calibration.labels or (None,) * len(images)
    try:
        check = check_codecs(folder, plan, choice.codecs[:-1], images, labels, request.threads)
    except WireFormatError as error:
        if request.codec != "auto":
            raise ModelError(f"--codec {request.codec}: {error}") from error
        return None
    return CodecVerification(
        images=check.images,
        labelled=check.labelled,
        top1_agreement=check.top1_agreement,
        accuracy_drop_points=check.accuracy_drop_points,
        max_abs_difference=check.max_abs_difference,
    )


def _is_good_enough(check: CodecVerification, request: PlanRequest) -> bool:
    """Codecs that were asked for by name are taken as they are; the plan records what they cost."""
    return request.codec != "auto" or check.accuracy_drop_points <= request.max_accuracy_drop


def _stage_spec(
    index: int, stage: StageGraph, files: ShardFiles, codec: Codec, predicted_ms: float | None
) -> StageSpec:
    return StageSpec(
        stage_index=index,
        first_segment=stage.first_segment,
        end_segment=stage.end_segment,
        inputs=stage.inputs,
        outputs=stage.outputs,
        codec=codec,
        graph=files.graph,
        weights=files.weights,
        weight_bytes=stage.weight_bytes,
        flops_per_image=stage.flops_per_image,
        predicted_ms_per_batch=None if predicted_ms is None else round(predicted_ms, 4),
        cache=stage.cache,
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
        plan_id=compute_plan_id(info.digest, specs, graph.model.decoding, request.batch_size),
        name=request.name,
        model=info,
        batch_size=request.batch_size,
        stages=tuple(specs),
        tied_weights=tied_weights,
        decoding=graph.model.decoding,
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
