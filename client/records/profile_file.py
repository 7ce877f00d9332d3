"""The plans of a recording as JSON: how each is cut, what was predicted, what was measured."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from client.records.collection import Collection
from client.records.csv_file import MAX_EARLIER_BYTES, already_there, replace_file
from client.records.reservoir import Reservoir, rounded
from client.records.stage_summary import StageSummary
from contract.errors import SettingsError
from contract.frozen import FrozenModel, explain
from contract.plan import Plan
from contract.prediction import Measurement, Prediction, SegmentCosts
from contract.printable import PlainText

PERCENTS = (50, 95, 99)


class Times(FrozenModel):
    """Of single batches, in ms."""

    mean: float
    p50: float
    p95: float
    p99: float


class StageRecord(FrozenModel):
    """One stage: as the plan has it, and as it was while it was recorded.

    Times are None where no batch was traced. ``utilisation`` and ``bubble_s`` are None and 0 where
    no client told of it.
    """

    stage_index: int
    devices: tuple[PlainText, ...]
    first_segment: int
    end_segment: int
    cut: PlainText
    codec: PlainText
    weight_bytes: int
    flops_per_image: int
    bytes_in_per_batch: int
    bytes_out_per_batch: int
    predicted_ms_per_batch: float | None
    batches: int
    images: int
    compute_ms: Times | None
    wait_ms: Times | None
    publish_ms: Times | None
    utilisation: float | None
    bubble_s: float


class PlanRecord(FrozenModel):
    """One plan, from when to when it was recorded. What a plan does not carry is empty or None:
    a published one carries its prediction, not its segments and not its measurement.
    """

    recorded_from_unix_s: float
    recorded_until_unix_s: float
    plan_id: PlainText
    name: PlainText
    model: PlainText
    digest: PlainText
    batch_size: int
    stages: tuple[StageRecord, ...]
    segments: tuple[SegmentCosts, ...] = ()
    prediction: Prediction | None = None
    measurement: Measurement | None = None


class ProfileDocument(FrozenModel):
    """The whole file."""

    format_version: Literal[1] = 1
    cluster: PlainText
    plans: tuple[PlanRecord, ...] = Field(default=())


def _times(times: Reservoir) -> Times | None:
    mean = rounded(times.mean)
    if mean is None:
        return None
    p50, p95, p99 = (round(times.percentile(percent) or 0.0, 3) for percent in PERCENTS)
    return Times(mean=mean, p50=p50, p95=p95, p99=p99)


def _stage_record(plan: Plan, stage: StageSummary) -> StageRecord:
    index, spec = stage.stage_index, plan.stages[stage.stage_index]
    return StageRecord(
        stage_index=index,
        devices=tuple(stage.devices),
        first_segment=spec.first_segment,
        end_segment=spec.end_segment,
        cut=stage.cut,
        codec=spec.codec,
        weight_bytes=spec.weight_bytes,
        flops_per_image=spec.flops_per_image,
        bytes_in_per_batch=plan.edge_bytes(index, plan.batch_size),
        bytes_out_per_batch=plan.edge_bytes(index + 1, plan.batch_size),
        predicted_ms_per_batch=spec.predicted_ms_per_batch,
        batches=stage.batches,
        images=stage.images,
        compute_ms=_times(stage.compute_ms),
        wait_ms=_times(stage.wait_ms),
        publish_ms=_times(stage.publish_ms),
        utilisation=stage.utilisation_mean,
        bubble_s=round(stage.bubble_s, 3),
    )


def plan_records(collection: Collection, now_unix_s: float) -> tuple[PlanRecord, ...]:
    """All plans of a recording, the newest last."""
    return tuple(
        PlanRecord(
            recorded_from_unix_s=collection.recorded_from_unix_s,
            recorded_until_unix_s=now_unix_s,
            plan_id=plan.plan_id,
            name=plan.name,
            model=plan.model.name,
            digest=plan.model.digest,
            batch_size=plan.batch_size,
            stages=tuple(_stage_record(plan, s) for s in collection.stages_of(plan.plan_id)),
            segments=plan.segments,
            prediction=plan.prediction,
            measurement=plan.measurement,
        )
        for plan in collection.plans.values()
    )


class ProfileFile:
    """A file that is replaced whole; plans of earlier recordings stay in front."""

    def __init__(self, path: Path, cluster: str, *, append: bool) -> None:
        """Look at what is there.

        Raises:
            SettingsError: it is there and ``append`` is not set, or is no such file.
        """
        self._path, self._cluster = path, cluster
        self._earlier: tuple[PlanRecord, ...] = ()
        if not path.exists():
            return
        if not append:
            raise already_there(path)
        try:
            if path.stat().st_size > MAX_EARLIER_BYTES:
                raise SettingsError(f"{path}: larger than {MAX_EARLIER_BYTES:,} bytes")
            document = ProfileDocument.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SettingsError(f"{path}: cannot read it ({error.strerror})") from error
        except ValidationError as error:
            raise SettingsError(
                f"{path}: not a file that `shardline metrics --profile` wrote ({explain(error)}); "
                "name another one"
            ) from error
        self._earlier = document.plans

    def replace(self, collection: Collection, now_unix_s: float) -> None:
        """Write all that is known.

        Raises:
            SettingsError: it cannot be written.
        """
        plans = (*self._earlier, *plan_records(collection, now_unix_s))
        document = ProfileDocument(cluster=self._cluster, plans=plans)
        replace_file(self._path, document.model_dump_json(indent=1).encode() + b"\n")
