"""Runs the shards as they were written, one after another, against the unsplit model.

The reference is the original framework, not the canonical graph: an error of the export, of the
folding or of the splitting all show here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import VerificationError
from contract.plan import CodecVerification, ImageInput, Plan, Verification
from contract.tensor_spec import TensorSpec, check_tensors
from planner.compare import TOLERANCE, Comparison, compare
from planner.importers.imported_model import Reference
from planner.sample_inputs import sample_images, sample_tensor
from shards.reader import read_shard
from shards.session import open_session, run_session

Array = npt.NDArray[Any]
VERIFY_IMAGES = 4
VERIFY_SEED = 20_001  # not the one that random weights are calibrated on


def verification_batch(
    model_input: object, spec: TensorSpec, count: int = VERIFY_IMAGES, seed: int = VERIFY_SEED
) -> Array:
    """A seeded batch that stage 0 takes, its images clearly different from each other."""
    if isinstance(model_input, ImageInput):
        return sample_images(
            count, model_input.channels, model_input.height, model_input.width, seed
        )
    return sample_tensor(spec, count, seed)


def run_shards(
    folder: Path, plan: Plan, batch: Array, threads: int, batch_size: int
) -> dict[str, Array]:
    """Run ``batch`` through all shards of ``plan`` in ``folder``, ``batch_size`` images at a time.

    One stage is open at a time, so that no more than the largest is in memory.

    Raises:
        ShardError: a shard is missing or corrupt.
        TensorMismatchError: a stage gives other tensors than the plan says.
    """
    parts = [
        {plan.stages[0].inputs[0].name: batch[start : start + batch_size]}
        for start in range(0, len(batch), batch_size)
    ]
    for stage in plan.stages:
        shard = read_shard(folder / stage.folder, plan, stage.stage_index)
        session = open_session(shard.graph_path, threads)
        for index, inputs in enumerate(parts):
            outputs = run_session(session, inputs)
            check_tensors(f"output of stage {stage.stage_index}", stage.outputs, outputs)
            parts[index] = outputs
        del session
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def verify_shards(folder: Path, plan: Plan, reference: Reference, threads: int) -> Comparison:
    """Compare the shards in ``folder`` with the reference, at the plan's batch size and at one.

    Raises:
        VerificationError: they differ by more than the tolerance.
    """
    batch = verification_batch(plan.model.input, plan.stages[0].inputs[0])
    expected = reference(batch)
    sizes = {min(plan.batch_size, VERIFY_IMAGES), 1}
    worst: Comparison | None = None
    for batch_size in sorted(sizes):
        actual = run_shards(folder, plan, batch, threads, batch_size)
        comparison = compare(actual, expected, TOLERANCE)
        if worst is None or not comparison.max_abs_difference <= worst.max_abs_difference:
            worst = comparison
    assert worst is not None
    if not worst.equal:
        raise VerificationError(
            f"plan {plan.name}: the {plan.num_stages} stages differ from the whole model by "
            f"{worst.max_abs_difference:.3g}, expected at most {worst.tolerance:g} of its largest "
            f"value {worst.max_abs_reference:.3g}; nothing was written. Try other cuts; if those "
            "differ as well, the export is wrong: please report the model"
        )
    return worst


def describe(
    comparison: Comparison, reference_name: str, codecs: CodecVerification | None = None
) -> Verification:
    """The comparison as the plan records it, and what lossy codecs cost beyond it."""
    return Verification(
        reference=reference_name,
        images=comparison.images,
        tolerance=comparison.tolerance,
        max_abs_difference=comparison.max_abs_difference,
        max_abs_reference=comparison.max_abs_reference,
        spread_between_images=comparison.spread_between_images,
        top1_agreement=comparison.top1_agreement,
        conclusive=comparison.conclusive,
        codecs=codecs,
    )
