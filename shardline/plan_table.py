"""Plans as tables for people."""

from rich import box
from rich.table import Table
from rich.text import Text

from contract.decoder import Decoding
from contract.plan import CodecVerification, Plan, Verification
from contract.tensor_spec import BATCH, TOKENS, TensorSpec
from shardline.console import size


def stages_table(plan: Plan) -> Table:
    """One row a stage: what it holds, what it computes, what it sends on."""
    table = new_table(f"{plan.name}  ·  plan {plan.plan_id}")
    decoding = plan.decoding
    unit = "image" if decoding is None else "token"
    caches = () if decoding is None else ("caches",)
    columns = ("stage", "segments", "weights", *caches, "MFLOP", "ms/batch", f"sends/{unit}")
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right")
    table.add_column("tensor")
    for stage in plan.stages:
        predicted = stage.predicted_ms_per_batch
        table.add_row(
            str(stage.stage_index),
            f"{stage.first_segment}…{stage.end_segment - 1}",
            size(stage.weight_bytes),
            *(
                ()
                if stage.cache is None or decoding is None
                else (size(stage.cache.bytes_of(decoding)),)
            ),
            f"{stage.flops_per_image / 1e6:,.1f}",
            "—" if predicted is None else f"{predicted:.1f}",
            size(stage.output_bytes_per_image),
            Text(f"{shape(stage.outputs[0])} {stage.outputs[0].name}"),
        )
    return table


def placement_table(plan: Plan) -> Table:
    """One row a device: its stage and the topics that carry its batches."""
    table = new_table(f"{plan.name}  ·  topic map")
    for column in ("stage", "device", "", "topics"):
        table.add_column(column, overflow="fold")
    for line in plan.topic_map:
        directions = "\n".join(("in", *("out" for _ in line.publishes)))
        topics = "\n".join((line.subscribes, *line.publishes))
        table.add_row(str(line.stage_index), Text(line.device), directions, Text(topics))
    return table


def edge_brokers_line(plan: Plan) -> str:
    """Which edges have brokers of their own, in one sentence."""
    own = "; ".join(
        f"edge {edge} ({_carries(plan, edge)}) {address}"
        for edge, address in sorted(plan.edge_addresses().items())
    )
    return f"brokers of their own: {own}; everything else goes by the main one"


def _carries(plan: Plan, edge: int) -> str:
    return "results" if edge == plan.num_stages else f"inputs of stage {edge}"


def new_table(title: str) -> Table:
    """A table with few lines, its title on the left and never markup."""
    return Table(
        title=Text(title, "table.title"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )


def shape(spec: TensorSpec) -> str:
    """One image's share of a tensor: ``64×56×56``; its dtype when it is not float32."""
    sizes = "×".join(str(size) for size in spec.shape if size not in (BATCH, TOKENS)) or "1"
    return sizes if spec.dtype == "float32" else f"{sizes} {spec.dtype}"


def verification_line(plan: Plan) -> str:
    """The comparison at build time in one sentence."""
    check = plan.verification
    if plan.decoding is not None:
        return _decoder_line(check)
    share = check.max_abs_difference / check.max_abs_reference if check.max_abs_reference else 0.0
    line = (
        f"sharded equals whole: largest difference {check.max_abs_difference:.2g} "
        f"({share:.1g} of the largest value, tolerance {check.tolerance:g}), "
        f"top-1 agrees on {check.top1_agreement:.0%} of {check.images} images, "
        f"against {check.reference}"
    )
    if check.codecs is not None:
        line += f"; {_what_codecs_cost(plan, check.codecs)}"
    if not check.conclusive:
        line += "; INCONCLUSIVE: the model's answers hardly differ between images"
    return line


def _decoder_line(check: Verification) -> str:
    line = (
        f"sharded equals whole: logits differ by {check.max_abs_difference:.2g} at most (tolerance "
        f"{check.tolerance:g}, the largest is {check.max_abs_reference:.3g}), the best token "
        f"agrees at {check.top1_agreement:.1%} of {check.images} positions"
    )
    if check.top1_agreement < 1.0:
        line += " (the others are near-ties)"
    line += f", against {check.reference}"
    if check.quantised is not None:
        its = check.quantised
        line += (
            f"; with activations rounded, logits differ by {its.relative_difference:.1%} of their "
            f"spread at most (tolerance {its.tolerance:.0%}), the best token agrees at "
            f"{its.top1_agreement:.1%}, against {its.reference} with the same rounded weights"
        )
    if not check.conclusive:
        line += "; INCONCLUSIVE: the model's answers hardly differ between positions"
    return line


def perplexity_line(decoding: Decoding) -> str:
    """What quantised weights cost, in one sentence."""
    text = decoding.text
    if text is None:
        return (
            f"{decoding.quantisation}: the perplexity was not measured, the model's folder has no "
            "tokenizer.json"
        )
    kind = "random tokens, for want of a tokenizer.json" if text.made_up else "tokens of text"
    change = text.perplexity_quantised / text.perplexity - 1
    return (
        f"{decoding.quantisation}: perplexity {text.perplexity_quantised:,.2f} on {text.tokens:,} "
        f"{kind}, {text.perplexity:,.2f} before ({change:+.1%})"
    )


def _what_codecs_cost(plan: Plan, check: CodecVerification) -> str:
    edges = [f"edge {s.stage_index + 1} {s.codec}" for s in plan.stages if s.codec != "float32"]
    kept = f"the best class stays on {check.top1_agreement:.1%} of {check.images} images"
    if check.labelled:
        kept += f", accuracy falls by {check.accuracy_drop_points:.2f} points"
    return f"with {', '.join(edges)}, {kept}"
