"""`shardline show`: a plan for people."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardline import options
from shardline.options import option

if TYPE_CHECKING:
    from contract.plan import Plan


def run(
    plan: Annotated[Path, typer.Argument(help="Folder that `shardline plan` wrote.")],
    html: Annotated[
        Path | None,
        option("--html", "Write the plan as one HTML page to this file, instead of printing it."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show a plan: its stages, what it is expected to do, its placement and topic map."""
    from contract.errors import SettingsError
    from contract.plan import load_plan
    from shardline.console import out, print_json
    from shardline.plan_table import (
        edge_brokers_line,
        placement_table,
        stages_table,
        verification_line,
    )
    from shardline.verdict_table import print_findings

    if html is not None and as_json:
        raise SettingsError("--html and --json: choose one")
    built = load_plan(plan)
    if html is not None:
        _write_page(built, html)
        out.print(f"written to {html}", markup=False, soft_wrap=True)
        return
    if as_json:
        print_json(built.model_dump(mode="json"))
        return
    out.print(
        f"{built.model.name}, weights: {built.model.weights}, batch {built.batch_size}",
        markup=False,
        soft_wrap=True,
    )
    out.print(stages_table(built))
    out.print(verification_line(built), markup=False, soft_wrap=True)
    if built.tied_weights:
        out.print(f"in more than one shard: {', '.join(built.tied_weights)}", markup=False)
    print_findings(built, out)
    if built.topic_map:
        out.print(placement_table(built))
        if built.edge_brokers:
            out.print(edge_brokers_line(built), markup=False, soft_wrap=True)
    else:
        out.print("not placed yet: `shardline publish` gives each stage a device")


def _write_page(plan: "Plan", file: Path) -> None:
    from contract.errors import EnvironmentMissingError

    try:
        from shardline.report.page import write_page
    except ImportError as error:
        raise EnvironmentMissingError(
            f"{error.name} is not installed: --html needs it, a stage does not; "
            "run `make setup`, or pip install 'shardline[planner]'"
        ) from error
    write_page(plan, file)
