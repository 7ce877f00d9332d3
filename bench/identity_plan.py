"""A one-stage plan that does nothing to a tensor of a given size: for measuring a hop alone."""

from pathlib import Path

from contract.plan import (
    ModelInfo,
    Plan,
    Replica,
    StageSpec,
    TensorInput,
    Verification,
    compute_plan_id,
    place,
)
from contract.tensor_spec import TensorSpec
from shards.manifest import ShardManifest
from shards.writer import write_manifest, write_shard_files


def make_identity_plan(folder: Path, size_bytes: int) -> Plan:
    """Write the shard to ``folder/identity`` and return the plan, placed on device ``pi-0``."""
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", size_bytes // 4))
    files = write_shard_files(folder / "identity" / "stage-0", {}, lambda _ranges: b"")
    stage = StageSpec(
        stage_index=0,
        first_segment=0,
        end_segment=1,
        inputs=(spec,),
        outputs=(spec,),
        graph=files.graph,
        weights=files.weights,
        weight_bytes=0,
        flops_per_image=0,
    )
    digest = "0" * 64
    plan = Plan(
        plan_id=compute_plan_id(digest, [stage]),
        name="identity",
        model=ModelInfo(name="identity", weights="none", digest=digest, input=TensorInput()),
        batch_size=1,
        stages=(stage,),
        verified_with={},
        verification=Verification(
            reference="none",
            images=1,
            tolerance=0.0,
            max_abs_difference=0.0,
            max_abs_reference=0.0,
            spread_between_images=0.0,
            top1_agreement=1.0,
            conclusive=False,
        ),
    )
    manifest = ShardManifest(
        plan_id=plan.plan_id,
        stage_index=0,
        graph=files.graph,
        weights=files.weights,
        inputs=stage.inputs,
        outputs=stage.outputs,
        verified_with={},
    )
    write_manifest(folder / "identity" / "stage-0", manifest)
    return place(plan, [[Replica(device="pi-0")]], "default")
