"""What a plan is expected to do, what else could be done, and what it did, as tables for people.

Each is readable on 80 columns; texts from a plan are printed as they are, never as markup.
"""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from contract.plan import Plan
from contract.prediction import Prediction, Verdict
from shardline import figures
from shardline.comparison import compare
from shardline.console import size
from shardline.plan_table import new_table


def print_findings(plan: Plan, console: Console) -> None:
    """Print prediction, verdict and measurement of a plan, each where the plan holds it."""
    for finding in _findings(plan):
        console.print(finding, soft_wrap=isinstance(finding, Text))


def _findings(plan: Plan) -> Iterator[RenderableType]:
    if plan.prediction is not None:
        yield prediction_table(plan)
        yield Text(gap_line(plan.prediction, "images" if plan.decoding is None else "tokens"))
    if plan.verdict is not None:
        yield verdict_table(plan)
        yield Text(f"verdict: {plan.verdict.reason}")
    if plan.measurement is not None:
        yield comparison_table(plan)


def gap_line(prediction: Prediction, unit: str = "images") -> str:
    """The expected rate in one line: ``51.3 images/s, optimal; bottleneck: stage 1 on pi-1``."""
    return (
        f"{figures.rate(prediction.images_per_s)} {unit}/s, {figures.gap_phrase(prediction)}; "
        f"bottleneck: {prediction.bottleneck}"
    )


def prediction_table(plan: Plan) -> RenderableType:
    """One row a device: its part of the batches, its times for one, how busy, how full.

    A plan without a prediction has a table without rows.
    """
    table = new_table("predicted, one batch")
    table.collapse_padding = True
    table.add_column("stage")
    table.add_column("device", overflow="fold")
    for column in ("share", "compute", "relay", "link", "busy", "memory", "limit"):
        table.add_column(column, justify="right")
    for device in plan.prediction.devices if plan.prediction else ():
        limit = device.memory_limit_bytes
        table.add_row(
            str(device.stage_index),
            Text(device.device),
            figures.percent(device.share),
            figures.ms(device.compute_ms),
            figures.ms(device.relay_ms),
            figures.ms(device.transfer_ms),
            figures.percent(device.utilisation),
            size(device.memory_bytes),
            figures.NONE if limit is None else size(limit),
        )
    return table


def verdict_table(plan: Plan) -> RenderableType:
    """One row a strategy, the recommended one named so; below, why the others cannot be done.

    A plan without a verdict has a table without rows.
    """
    table = new_table("verdict: ways to use these devices")
    table.add_column("strategy")
    unit = "image" if plan.decoding is None else "token"
    for column in (f"{unit}s/s", "alone", "loaded", "memory", f"broker/{unit}"):
        table.add_column(column, justify="right")
    table.add_column("")
    problems = []
    for alternative in plan.verdict.alternatives if plan.verdict else ():
        assert plan.verdict is not None
        found = alternative.prediction
        table.add_row(
            alternative.strategy,
            figures.rate(found.images_per_s if found else None),
            figures.ms(found.latency_ms if found else None),
            figures.ms(found.loaded_latency_ms if found else None),
            size(found.largest_memory_bytes) if found else figures.NONE,
            size(found.broker_bytes_per_image) if found else figures.NONE,
            ", ".join(marks(plan.verdict, alternative.strategy)),
        )
        if found is None:
            reason = alternative.problem or "was not worked out"
            problems.append(Text(f"{alternative.strategy}: {reason}"))
    return Group(table, *problems) if problems else table


def marks(verdict: Verdict, strategy: str) -> list[str]:
    """What a strategy is: recommended, and chosen where somebody chose another one."""
    words = ["recommended"] if strategy == verdict.recommended else []
    if strategy == verdict.chosen != verdict.recommended:
        words.append("this plan")
    return words


def comparison_table(plan: Plan) -> Table:
    """One row a figure: predicted, measured, and by how much the prediction was too large.

    A plan without a measurement has a table without rows.
    """
    table = new_table("predicted and measured")
    table.add_column("of", overflow="fold")
    table.add_column("figure")
    for column in ("predicted", "measured", "error"):
        table.add_column(column, justify="right")
    before = None
    for row in compare(plan):
        table.add_row(
            Text("" if row.subject == before else row.subject),
            row.quantity,
            row.predicted_text,
            row.measured_text,
            figures.signed_percent(row.error),
        )
        before = row.subject
    return table
