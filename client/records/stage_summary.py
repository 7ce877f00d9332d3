"""What one stage of a plan did while it was recorded: a row of stages.csv. Pure."""

from dataclasses import dataclass, field

from client.records.csv_file import Row
from client.records.reservoir import Mean, Reservoir, rounded
from client.records.rows import several, text
from contract.metrics import StageMetrics
from contract.plan import Plan

STAGE_COLUMNS = (
    *("recorded_from_unix_s", "plan_id", "stage_index", "devices", "first_segment"),
    *("end_segment", "cut", "codec", "weight_bytes", "flops_per_image", "batch_size"),
    *("bytes_in_per_batch", "bytes_out_per_batch", "predicted_ms_per_batch", "batches", "images"),
    *("compute_ms_mean", "compute_ms_p50", "compute_ms_p95", "compute_ms_p99", "wait_ms_mean"),
    *("wait_ms_p50", "wait_ms_p95", "publish_ms_mean", "publish_ms_p50", "publish_ms_p95"),
    *("utilisation_mean", "bubble_s"),
)

MAX_BUBBLE_S = 3600.0
"""Of one message: clients send one a second, and what they claim must not end a sum at infinity."""


@dataclass
class StageSummary:
    """Adds up what clients tell of one stage: times from traces, idle time from their metrics."""

    plan: Plan
    stage_index: int
    devices: list[str] = field(default_factory=list)
    """That serve it, or have served it while the plan was recorded."""
    batches: int = 0
    images: int = 0
    wait_ms: Reservoir = field(default_factory=Reservoir)
    compute_ms: Reservoir = field(default_factory=Reservoir)
    publish_ms: Reservoir = field(default_factory=Reservoir)
    bubble_s: float = 0.0
    _utilisation: Mean = field(default_factory=Mean)

    def place(self, plan: Plan) -> None:
        """The same stages, perhaps on other devices."""
        self.plan = plan
        for spot in plan.placement[self.stage_index : self.stage_index + 1]:
            self.devices += [r.device for r in spot.replicas if r.device not in self.devices]

    def take_times(self, images: int, wait_ms: float, compute_ms: float, publish_ms: float) -> None:
        """One batch that went through."""
        self.batches += 1
        self.images += images
        self.wait_ms.add(wait_ms)
        self.compute_ms.add(compute_ms)
        self.publish_ms.add(publish_ms)

    def take_metrics(self, metrics: StageMetrics) -> None:
        """One client's view of an interval."""
        self._utilisation.add(min(1.0, max(0.0, metrics.utilisation)))
        self.bubble_s += min(MAX_BUBBLE_S, max(0.0, metrics.bubble_s))

    @property
    def utilisation_mean(self) -> float | None:
        """Of all the intervals in which clients told of it."""
        return rounded(self._utilisation.value(), 4)

    @property
    def cut(self) -> str:
        """Names of the tensors that it gives."""
        return several(spec.name for spec in self.plan.stages[self.stage_index].outputs)

    def row(self, recorded_from_unix_s: float) -> Row:
        """The row of stages.csv."""
        plan, index = self.plan, self.stage_index
        stage = plan.stages[index]
        return (
            recorded_from_unix_s,
            plan.plan_id,
            index,
            several(self.devices),
            stage.first_segment,
            stage.end_segment,
            text(self.cut),
            stage.codec,
            stage.weight_bytes,
            stage.flops_per_image,
            plan.batch_size,
            plan.edge_bytes(index, plan.batch_size),
            plan.edge_bytes(index + 1, plan.batch_size),
            stage.predicted_ms_per_batch,
            self.batches,
            self.images,
            *_mean_and(self.compute_ms, 50, 95, 99),
            *_mean_and(self.wait_ms, 50, 95),
            *_mean_and(self.publish_ms, 50, 95),
            self.utilisation_mean,
            round(self.bubble_s, 3),
        )


def _mean_and(times: Reservoir, *percents: float) -> tuple[float | None, ...]:
    return (rounded(times.mean), *(rounded(times.percentile(percent)) for percent in percents))
