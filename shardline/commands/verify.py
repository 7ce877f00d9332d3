"""`shardline verify`: what a running plan does, beside what was predicted."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from shardline import options
from shardline.options import option


def run(
    plan: Annotated[Path, typer.Argument(help="Folder that `shardline plan` wrote.")],
    seconds: Annotated[
        float, option("--seconds", "How long to run with a full window.", min=1.0)
    ] = 10.0,
    window: options.Window = None,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    ready_timeout: options.ReadyTimeout = 60.0,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Run the published plan on made-up inputs: predicted beside measured, for stages and links."""
    from client.measure import measure
    from client.memory_watch import MemoryWatch
    from client.settings import ClientSettings, random_client_name
    from contract.plan import load_plan, save_plan
    from shardline.connecting import connect_to
    from shardline.console import out, print_json, set_up_logging, steps
    from shardline.verdict_table import comparison_table

    set_up_logging(verbose)
    built = load_plan(plan)
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    settings = ClientSettings(
        name=connect.address.username or random_client_name(),
        cluster=cluster,
        window=window,
        ready_timeout_s=ready_timeout,
    )
    with ExitStack() as stack:
        step = stack.enter_context(steps("verifying"))
        memory: Mapping[str, int] = {}
        if connect.address.username is None:  # a user of a fleet has but one, and reads no metrics
            name = f"{settings.name}-watch"
            memory = stack.enter_context(MemoryWatch(connect, cluster, name)).rss_bytes
        running, measurement = measure(
            settings, connect, connect.elsewhere, built.plan_id, seconds, step, memory
        )
    # As it runs: it may have been placed on other devices than those that it was planned for.
    report = {"segments": built.segments, "measurement": measurement}
    if running.placement == built.placement:
        report["verdict"] = built.verdict
    kept = running.model_copy(update=report)
    file = save_plan(kept, plan)
    if as_json:
        print_json(kept.model_dump(mode="json", include={"prediction", "measurement"}))
    else:
        out.print(comparison_table(kept))
        out.print(f"kept in {file}", soft_wrap=True)
