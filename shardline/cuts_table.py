"""Every legal cut point of a model as a table: what `plan --list-cuts` prints."""

from typing import Any

from rich.text import Text

from planner.graph import SegmentedGraph
from shardline.console import out, print_json, size
from shardline.plan_table import new_table, shape


def print_cuts(graph: SegmentedGraph, as_json: bool) -> None:
    """Print the table, or the same as JSON."""
    rows: list[dict[str, Any]] = []
    weight_bytes = flops = 0
    for cut_point, segment in zip(graph.cuts, graph.segments, strict=False):
        weight_bytes += segment.weight_bytes
        flops += segment.flops_per_image
        rows.append(
            {
                "cut": cut_point.name,
                "scope": cut_point.scope,
                "tensor": cut_point.spec.describe(),
                "shape": shape(cut_point.spec),
                "activation_bytes_per_image": cut_point.spec.bytes_per_image,
                "cumulative_weight_bytes": weight_bytes,
                "cumulative_flops_per_image": flops,
            }
        )
    if as_json:
        print_json(rows)
        return
    title = f"{len(rows)} legal cut points of {graph.model.info.name}"
    table = new_table(title)
    for column in ("cut", "in", "tensor"):
        table.add_column(column, overflow="fold")
    unit = "image" if graph.model.decoding is None else "token"
    for column in (f"sends/{unit}", "weights before", "MFLOP before"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            Text(str(row["cut"])),
            Text(str(row["scope"])),
            str(row["shape"]),
            size(row["activation_bytes_per_image"]),
            size(row["cumulative_weight_bytes"]),
            f"{row['cumulative_flops_per_image'] / 1e6:,.1f}",
        )
    out.print(table)
