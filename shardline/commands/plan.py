"""`shardline plan`: cut a model into shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from shardline import options
from shardline.options import option

if TYPE_CHECKING:
    from planner.graph import SegmentedGraph

PARTITIONERS = ("exact", "greedy", "even")


def run(
    model: Annotated[
        str, typer.Argument(help="torchvision:NAME, a .onnx file, or module:callable.")
    ],
    stages: Annotated[int | None, option("--stages", "How many stages.", min=1)] = None,
    cut: Annotated[
        list[str] | None,
        option("--cut", "Cut here (a name of --list-cuts); repeatable, instead of --stages."),
    ] = None,
    list_cuts: Annotated[
        bool, option("--list-cuts", "Print every legal cut point and stop.")
    ] = False,
    batch: options.BatchSize = 1,
    device: Annotated[
        list[str] | None,
        option(
            "--device",
            "Device of the next stage, in order; repeatable. Default: at publish.",
            variable="DEVICES",
        ),
    ] = None,
    partitioner: Annotated[
        str, option("--partitioner", "How to balance the stages: exact, greedy or even.")
    ] = "exact",
    weights: options.Weights = "DEFAULT",
    seed: options.Seed = 0,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    model_arg: options.ModelArg = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preprocess: options.Preprocess = "auto",
    name: Annotated[str | None, option("--name", "Name of the plan; default: the model's.")] = None,
    out: Annotated[Path, option("--out", "Folder of built plans.")] = options.SHARDS_DIR,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    threads: options.Threads = 1,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Cut a model into stages, write their shards, and prove that they equal the whole model."""
    from contract.errors import SettingsError
    from shardline.console import out as stdout
    from shardline.console import print_json, set_up_logging, steps
    from shardline.importing import import_options
    from shardline.plan_table import stages_table, verification_line
    from shardline.verdict_table import print_findings
    from stage.cores import available_cores

    set_up_logging(verbose)
    if partitioner not in PARTITIONERS:
        raise SettingsError(f"--partitioner {partitioner!r}: expected one of {PARTITIONERS}")
    if stages is not None and cut:
        raise SettingsError("--stages and --cut: choose one")
    chosen = import_options(
        weights, seed, num_classes, input_size, model_arg, mean, std, preprocess
    )
    from contract.plan import Replica
    from contract.topics import check_name
    from planner.build import PlanRequest, build_plan
    from planner.canonical import canonicalise
    from planner.graph import segment_graph
    from planner.importers import import_model

    with steps("planning") as step:
        imported = import_model(model, chosen, step)
        graph = segment_graph(canonicalise(imported, step))
        if list_cuts:
            built = None
        else:
            request = PlanRequest(
                name=name or plan_name(model),
                out_dir=out,
                num_stages=stages or 1,
                cuts=tuple(cut) if cut else None,
                batch_size=batch,
                threads=threads or available_cores(),
                partitioner=cast(Literal["exact", "greedy", "even"], partitioner),
                devices=tuple((Replica(device=check_name("device", d)),) for d in device)
                if device
                else None,
                cluster=cluster,
            )
            built = build_plan(imported, graph, request, step)
    if built is None:
        _print_cuts(graph, as_json)
    elif as_json:
        print_json(built.model_dump(mode="json"))
    else:
        stdout.print(stages_table(built))
        stdout.print(verification_line(built), soft_wrap=True)
        print_findings(built, stdout)
        stdout.print(f"written to {out / built.name}", soft_wrap=True)
        stdout.print(f"next: shardline publish {out / built.name}", soft_wrap=True)


def plan_name(model: str) -> str:
    """``torchvision:resnet18`` -> resnet18, ``dir/net.onnx`` -> net, ``pkg.mod:make`` -> make."""
    last = model.removesuffix(".onnx").replace("\\", "/").rpartition("/")[2].rpartition(":")[2]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in last) or "plan"


def _print_cuts(graph: "SegmentedGraph", as_json: bool) -> None:
    from shardline.console import out, print_json, size
    from shardline.plan_table import new_table, shape

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
    for column in ("sends/image", "weights before", "MFLOP before"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["cut"]),
            str(row["scope"]),
            str(row["shape"]),
            size(row["activation_bytes_per_image"]),
            size(row["cumulative_weight_bytes"]),
            f"{row['cumulative_flops_per_image'] / 1e6:,.1f}",
        )
    out.print(table)
