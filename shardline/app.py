"""The commands. Each imports its package only when it is called: `stage` must not load torch."""

import typer

from shardline.commands import (
    broker,
    dashboard,
    demo,
    deploy,
    doctor,
    generate,
    infer,
    journal,
    metrics,
    plan,
    profile,
    publish,
    serve,
    show,
    stage,
    top,
    trace,
    verify,
)

app = typer.Typer(
    name="shardline",
    help="A drawer of Raspberry Pis becomes one inference machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    *(demo, plan, profile, show, publish, verify, stage, infer, generate, serve),
    *(trace, top, metrics, dashboard, broker, doctor),
):
    app.command(name=command.__name__.rpartition(".")[2])(command.run)
app.add_typer(deploy.app, name="deploy")
app.add_typer(journal.app, name="journal")
