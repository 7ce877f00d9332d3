"""Plans as tables for people."""

from rich.table import Table

from contract.plan import Plan
from shardline.console import size


def stages_table(plan: Plan) -> Table:
    """One row a stage: what it holds, what it computes, what it sends on."""
    table = Table(title=f"{plan.name}  ·  plan {plan.plan_id}", title_justify="left")
    for column in ("stage", "segments", "weights", "MFLOP/image", "predicted ms/batch", "sends"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in plan.stages:
        predicted = stage.predicted_ms_per_batch
        table.add_row(
            str(stage.stage_index),
            f"{stage.first_segment}…{stage.end_segment - 1}",
            size(stage.weight_bytes),
            f"{stage.flops_per_image / 1e6:,.1f}",
            "—" if predicted is None else f"{predicted:.1f}",
            f"{size(stage.output_bytes_per_image)}/image  {stage.outputs[0].name}",
        )
    return table


def placement_table(plan: Plan) -> Table:
    """One row a device: its stage and the topics that carry its batches."""
    table = Table(title=f"{plan.name}  ·  topic map", title_justify="left")
    for column in ("stage", "device", "subscribes to", "publishes to"):
        table.add_column(column, overflow="fold")
    for line in plan.topic_map:
        table.add_row(
            str(line.stage_index), line.device, line.subscribes, "\n".join(line.publishes)
        )
    return table


def verification_line(plan: Plan) -> str:
    """The comparison at build time in one sentence."""
    check = plan.verification
    share = check.max_abs_difference / check.max_abs_reference if check.max_abs_reference else 0.0
    line = (
        f"sharded equals whole: largest difference {check.max_abs_difference:.2g} "
        f"({share:.1g} of the largest value, tolerance {check.tolerance:g}), "
        f"top-1 agrees on {check.top1_agreement:.0%} of {check.images} images, "
        f"against {check.reference}"
    )
    if not check.conclusive:
        line += "; INCONCLUSIVE: the model's answers hardly differ between images"
    return line
