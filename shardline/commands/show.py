"""`shardline show`: a plan for people."""

from pathlib import Path
from typing import Annotated

import typer

from shardline import options


def run(
    plan: Annotated[Path, typer.Argument(help="Folder that `shardline plan` wrote.")],
    as_json: options.Json = False,
) -> None:
    """Show a plan: its stages, its verification, its placement and topic map."""
    from contract.plan import load_plan
    from shardline.console import out, print_json
    from shardline.plan_table import (
        edge_brokers_line,
        placement_table,
        stages_table,
        verification_line,
    )

    built = load_plan(plan)
    if as_json:
        print_json(built.model_dump(mode="json"))
        return
    out.print(f"{built.model.name}, weights: {built.model.weights}, batch {built.batch_size}")
    out.print(stages_table(built))
    out.print(verification_line(built), soft_wrap=True)
    if built.tied_weights:
        out.print(f"in more than one shard: {', '.join(built.tied_weights)}", markup=False)
    if built.topic_map:
        out.print(placement_table(built))
        if built.edge_brokers:
            out.print(edge_brokers_line(built), markup=False, soft_wrap=True)
    else:
        out.print("not placed yet: `shardline publish` gives each stage a device")
