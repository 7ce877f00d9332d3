"""What a row of batches.csv and of pipeline.csv holds. Pure.

Names of columns carry their units; docs/records.md says what each means. A column for every stage
would change with every plan: what there is once for each stage stands in one cell, with semicolons
between, stage 0 first.
"""

from collections.abc import Iterable

from client.records.csv_file import Cell, Row
from contract.metrics import PipelineMetrics
from contract.printable import printable
from contract.topics import is_name, is_plan_id
from contract.trace import BatchTrace

BATCH_COLUMNS = (
    *("client", "plan_id", "epoch", "seq", "attempt", "images", "finished_unix_s"),
    *("latency_ms", "queue_ms", "transfer_ms", "wait_ms", "compute_ms", "publish_ms"),
    *("utilisation", "route", "stage_started_unix_s", "stage_wait_ms", "stage_compute_ms"),
    *("stage_publish_ms", "bytes_in", "bytes_out"),
)
PIPELINE_COLUMNS = (
    *("time_unix_s", "client", "plan_id", "window", "batches_per_s", "images_per_s"),
    *("latency_ms_p50", "latency_ms_p95", "latency_ms_p99", "submitted", "delivered"),
    *("in_flight", "retried", "duplicates_dropped", "dead", "lost", "stage_compute_ms_p50"),
    *("stage_wait_ms_p50", "stage_utilisation", "stage_bubble_s", "untraced"),
    *("tokens_per_s", "first_token_ms", "near_ties_total"),
)
MAX_TEXT = 200
_FORMULA = ("=", "+", "-", "@")
"""A spreadsheet computes a cell that begins so, whoever wrote it."""


def several(values: Iterable[Cell]) -> str:
    """One cell with what there is of each stage."""
    return ";".join("" if value is None else str(value) for value in values)


def text(value: str) -> str:
    """A text that others chose, as a cell that is a text to every reader."""
    plain = printable(value)[:MAX_TEXT]
    return f"'{plain}" if plain.startswith(_FORMULA) else plain


def plan_cell(plan_id: str | None) -> str:
    """A plan's id; nothing for what cannot be one."""
    return plan_id if plan_id is not None and is_plan_id(plan_id) else ""


def is_sound(batch: BatchTrace) -> bool:
    """Whether a trace names devices that can be, each with what it did."""
    return (
        len(batch.route) == len(batch.hops) > 0
        and all(is_name(device) for device in batch.route)
        and batch.epoch.isascii()
        and batch.epoch.isalnum()
    )


def stage_times_ms(batch: BatchTrace) -> list[tuple[float, float, float]]:
    """For each stage: waiting, computing, and making the message that went on, in ms.

    Each is a difference of two times of one device's clock.
    """
    return [
        (
            (hop.started_us - hop.received_us) / 1000,
            (hop.finished_us - hop.started_us) / 1000,
            (hop.sent_us - hop.finished_us) / 1000,
        )
        for hop in batch.hops
    ]


def batch_row(client: str, plan_id: str, batch: BatchTrace, utilisation: float) -> Row:
    """A sound trace as a row of batches.csv; ``utilisation`` is that of the pipeline so far."""
    times = stage_times_ms(batch)
    wait, compute, publish = (round(sum(part), 3) for part in zip(*times, strict=True))
    latency_ms = (batch.received_us - batch.queued_us) / 1000
    queue_ms = (batch.sent_us - batch.queued_us) / 1000
    return (
        client,
        plan_cell(plan_id),
        batch.epoch[:MAX_TEXT],
        batch.seq,
        batch.attempt,
        batch.images,
        batch.received_us / 1e6,
        latency_ms,
        queue_ms,
        round(latency_ms - queue_ms - wait - compute - publish, 3),
        wait,
        compute,
        publish,
        round(utilisation, 4),
        several(batch.route),
        several(hop.started_us / 1e6 for hop in batch.hops),
        *(several(part) for part in zip(*times, strict=True)),
        batch.bytes_in,
        batch.bytes_out,
    )


def pipeline_row(metrics: PipelineMetrics, untraced: int) -> Row:
    """Metrics as a row of pipeline.csv; ``untraced``: batches of this client and plan so far that
    had no place in a trace, and so have no row in batches.csv.
    """
    ledger = metrics.ledger
    return (
        metrics.time_unix_s,
        metrics.client,
        plan_cell(metrics.plan_id),
        metrics.window,
        metrics.batches_per_s,
        metrics.images_per_s,
        metrics.latency_ms_p50,
        metrics.latency_ms_p95,
        metrics.latency_ms_p99,
        ledger.submitted,
        ledger.delivered,
        ledger.in_flight,
        ledger.retried,
        ledger.duplicates_dropped,
        ledger.dead,
        ledger.lost,
        several(stage.compute_ms_p50 for stage in metrics.stages),
        several(stage.wait_ms_p50 for stage in metrics.stages),
        several(stage.utilisation for stage in metrics.stages),
        several(stage.bubble_s for stage in metrics.stages),
        untraced,
        metrics.tokens_per_s,
        metrics.first_token_ms,
        metrics.near_ties_total,
    )
