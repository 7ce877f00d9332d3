"""Where a batch's time went, as a table for people and as a document for scripts."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from client.trace_clocks import Clock
from client.trace_parts import Decomposition, Part, PartKind, PartSummary, TimedBatch, summarise
from shardline import figures
from shardline.plan_table import new_table


def parts_table(found: Decomposition, client: str) -> Table:
    """One row for each part in order, then their sum beside the latency."""
    count = len(found.batches)
    table = new_table(f"where the time of {count} {_plural(count, 'batch')} of {client} went")
    table.add_column("part")
    for column in ("median", "mean", "±", "share"):
        table.add_column(column, justify="right")
    table.add_column("device")
    rows = summarise(found.batches)
    for row in rows:
        table.add_row(
            part_words(row.kind, row.stage_index),
            figures.ms(row.median_us / 1000),
            figures.ms(row.mean_us / 1000),
            figures.ms(row.uncertainty_us / 1000) if row.uncertainty_us else "",
            figures.percent(row.share),
            Text(", ".join(row.devices) or "client"),
        )
    medians, means = totals(rows, found)
    table.add_section()
    table.add_row("sum", figures.ms(medians.sum_ms), figures.ms(means.sum_ms))
    table.add_row("latency", figures.ms(medians.latency_ms), figures.ms(means.latency_ms))
    table.add_row("difference", medians.difference, means.difference)
    return table


class Total(NamedTuple):
    """The sum over all parts, beside what it should be."""

    sum_ms: float
    latency_ms: float

    @property
    def difference(self) -> str:
        """As a share of the latency."""
        share = (self.sum_ms - self.latency_ms) / self.latency_ms if self.latency_ms else None
        return figures.signed_percent(share)


def totals(rows: Sequence[PartSummary], found: Decomposition) -> tuple[Total, Total]:
    """Of the medians, which need not add up, and of the means, which do."""
    latencies = [batch.latency_us for batch in found.batches]
    return (
        Total(sum(row.median_us for row in rows) / 1000, statistics.median(latencies) / 1000),
        Total(sum(row.mean_us for row in rows) / 1000, statistics.fmean(latencies) / 1000),
    )


def largest_difference_us(found: Decomposition) -> int:
    """Between the sum of one batch's own parts and its latency."""
    return max(
        abs(sum(part.length_us for part in batch.parts) - batch.latency_us)
        for batch in found.batches
    )


def part_words(kind: PartKind, stage_index: int | None) -> str:
    """What a row is called."""
    if kind is PartKind.QUEUE:
        return "queue at the client"
    if kind is PartKind.TRANSFER:
        return (
            "transfer of the result" if stage_index is None else f"transfer to stage {stage_index}"
        )
    return f"  {kind}"


def remarks(found: Decomposition) -> list[str]:
    """What limits the figures, a sentence each."""
    told = [clock_words(clock) for clock in found.clocks]
    lines = [f"clocks: {'; '.join(told)}"] if told else []
    if any(not clock.is_measured for clock in found.clocks):
        lines.append(
            "a device has not said what its time is, so its transfers are known by the batches "
            "alone; if that stays so, run one version everywhere and `shardline deploy render` "
            "again"
        )
    if found.left_out:
        lines.append(
            f"{found.left_out} {_plural(found.left_out, 'batch')} left out: a clock was set while "
            "they were on their way, or a stage told no times"
        )
    return lines


def clock_words(clock: Clock) -> str:
    """One clock in words."""
    ahead = "ahead" if clock.offset_us >= 0 else "behind"
    words = (
        f"{clock.device} {figures.ms(abs(clock.offset_us) / 1000)} {ahead}, "
        f"±{figures.ms(clock.uncertainty_us / 1000)}"
    )
    if clock.moved_us:
        moved = figures.ms(abs(clock.moved_us) / 1000)
        words += f" (moved by {moved}, so that no batch arrives before it was sent)"
    return words


def document(found: Decomposition, client: str) -> dict[str, Any]:
    """All of it, for ``--json``: times in milliseconds unless the name says otherwise."""
    rows = summarise(found.batches)
    medians, means = totals(rows, found)
    return {
        "client": client,
        "parts": [
            {
                "part": str(row.kind),
                "stage_index": row.stage_index,
                "devices": list(row.devices),
                "median_ms": round(row.median_us / 1000, 3),
                "mean_ms": round(row.mean_us / 1000, 3),
                "uncertainty_ms": round(row.uncertainty_us / 1000, 3),
                "share": round(row.share, 4),
            }
            for row in rows
        ],
        "sum_of_medians_ms": round(medians.sum_ms, 3),
        "median_latency_ms": round(medians.latency_ms, 3),
        "sum_of_means_ms": round(means.sum_ms, 3),
        "mean_latency_ms": round(means.latency_ms, 3),
        "largest_difference_ms": largest_difference_us(found) / 1000,
        "clocks": [
            {
                "device": clock.device,
                "offset_us": clock.offset_us,
                "uncertainty_us": clock.uncertainty_us,
                "moved_us": clock.moved_us,
                "is_measured": clock.is_measured,
            }
            for clock in found.clocks
        ],
        "left_out": found.left_out,
        "batches": [_batch(batch) for batch in found.batches],
    }


def _batch(batch: TimedBatch) -> dict[str, Any]:
    trace = batch.trace
    return {
        "epoch": trace.epoch,
        "seq": trace.seq,
        "attempt": trace.attempt,
        "images": trace.images,
        "bytes_in": trace.bytes_in,
        "bytes_out": trace.bytes_out,
        "latency_ms": batch.latency_us / 1000,
        "parts": [_part(part, trace.queued_us) for part in batch.parts],
    }


def _part(part: Part, zero_us: int) -> dict[str, Any]:
    return {
        "part": str(part.kind),
        "stage_index": part.stage_index,
        "device": part.device,
        "begin_ms": (part.begin_us - zero_us) / 1000,
        "ms": part.length_us / 1000,
    }


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}es"
