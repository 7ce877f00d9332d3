"""What codecs do to the answers of a plan: its shards are run with and without them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.codec import Codec, compress, expand
from contract.plan import Plan, StageSpec
from contract.tensor_spec import check_tensors
from planner.compare import compare
from shards.reader import read_shard
from shards.session import open_session, run_session

Array = npt.NDArray[Any]
Part = dict[str, Array]
Assignment = tuple[Codec, ...]
"""One codec for each cut, in order."""

MAX_HELD_BYTES = 256_000_000  # activations of the calibration images that are held at once


@dataclass(frozen=True, slots=True)
class CodecCheck:
    """What codecs do to the answers of the same shards on the same images.

    ``labelled`` is how many of the ``images`` have a label. ``accuracy_drop_points`` is the loss of
    accuracy on those, in percentage points and negative for a gain; without any label it is
    100 x (1 - ``top1_agreement``), which no real loss exceeds. One image is 100 / ``images``
    points: no smaller loss can be seen.
    """

    codecs: Assignment
    images: int
    labelled: int
    top1_agreement: float
    accuracy_drop_points: float
    max_abs_difference: float
    max_abs_reference: float


def check_codecs(
    folder: Path,
    plan: Plan,
    codecs: Sequence[Codec],
    images: Array,
    labels: Sequence[int | None],
    threads: int,
) -> CodecCheck:
    """Run images through the shards in ``folder`` with and without codecs, and compare the answers.

    One stage is in memory at a time, and activations of at most 256 MB or of one batch. The codecs
    that ``plan`` itself names play no part.

    Args:
        folder: that of the plan, with the folders of its stages.
        plan: built, with any codecs.
        codecs: one for each cut.
        images: (N, ...) as stage 0 takes them, N at least 1.
        labels: the right class of each image, as an index into the first output, or None.
        threads: for the engine.

    Raises:
        ValueError: not as many codecs as cuts or labels as images.
        ShardError: a shard is missing or corrupt.
        TensorMismatchError: a stage gives other tensors than the plan says.
        WireFormatError: an activation cannot be carried by its codec.
    """
    if len(codecs) != plan.num_stages - 1 or len(labels) != len(images):
        raise ValueError(
            f"{len(codecs)} codecs for {plan.num_stages - 1} cuts, "
            f"{len(labels)} labels for {len(images)} images"
        )
    widest = max(stage.input_bytes_per_image for stage in plan.stages)
    at_once = max(plan.batch_size, MAX_HELD_BYTES // (2 * widest))
    exact: list[Part] = []
    coded: list[Part] = []
    for start in range(0, len(images), at_once):
        both = _run_both(folder, plan, codecs, images[start : start + at_once], threads)
        exact += both[0]
        coded += both[1]
    reference, answers = _joined(exact), _joined(coded)
    compared = compare(answers, reference)
    first = plan.stages[-1].outputs[0].name
    drop, labelled = _accuracy_drop(reference[first], answers[first], labels)
    return CodecCheck(
        codecs=tuple(codecs),
        images=len(images),
        labelled=labelled,
        top1_agreement=compared.top1_agreement,
        accuracy_drop_points=drop if labelled else 100 * (1 - compared.top1_agreement),
        max_abs_difference=compared.max_abs_difference,
        max_abs_reference=compared.max_abs_reference,
    )


def _run_both(
    folder: Path, plan: Plan, codecs: Sequence[Codec], images: Array, threads: int
) -> tuple[list[Part], list[Part]]:
    """Answers of batches without codecs, and with them."""
    name, size = plan.stages[0].inputs[0].name, plan.batch_size
    exact: list[Part] = [
        {name: images[start : start + size]} for start in range(0, len(images), size)
    ]
    coded = list(exact)  # the same objects as long as no codec has changed anything
    every: Assignment = (*codecs, "float32")  # the results travel as they are
    for stage, codec in zip(plan.stages, every, strict=True):
        shard = read_shard(folder / stage.folder, plan, stage.stage_index)
        session = open_session(shard.graph_path, threads)
        for index, (plain, lossy) in enumerate(zip(exact, coded, strict=True)):
            exact[index] = run_session(session, plain)
            where = f"output of stage {stage.stage_index}"
            check_tensors(where, stage.outputs, exact[index])
            coded[index] = exact[index] if lossy is plain else run_session(session, lossy)
            coded[index] = _carried(codec, stage, coded[index], where)
        del session
    return exact, coded


def _carried(codec: Codec, stage: StageSpec, outputs: Part, where: str) -> Part:
    """Outputs as the next stage gets them."""
    if codec == "float32":
        return outputs
    return dict(expand(codec, stage.outputs, compress(codec, outputs), where))


def _joined(parts: Sequence[Part]) -> Part:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _accuracy_drop(
    reference: Array, answers: Array, labels: Sequence[int | None]
) -> tuple[float, int]:
    """Loss of accuracy in points on the images that have a label, and how many those are."""
    known = [index for index, label in enumerate(labels) if label is not None]
    if not known:
        return 0.0, 0
    right = np.array([labels[index] for index in known])
    was, became = (
        (scores.reshape(len(scores), -1)[known].argmax(axis=1) == right).mean()
        for scores in (reference, answers)
    )
    return float(100 * (was - became)), len(known)
