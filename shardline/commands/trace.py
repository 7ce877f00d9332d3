"""`shardline trace`: where a batch's time went."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from shardline import options
from shardline.options import option

if TYPE_CHECKING:
    from client.trace_parts import TimedBatch


def run(
    batches: Annotated[int, option("--batches", "How many batches to follow.", min=1, max=256)] = 8,
    client: Annotated[
        str | None, option("--client", "Whose batches; default: whoever tells of the most.")
    ] = None,
    feed: Annotated[
        bool, option("--feed", "Feed made-up batches, with a client's credentials.")
    ] = False,
    window: options.Window = None,
    perfetto: Annotated[
        Path | None,
        option("--perfetto", "Write a trace here (.json) for ui.perfetto.dev or chrome://tracing."),
    ] = None,
    picture: Annotated[
        Path | None,
        option("--picture", "Draw these batches and the bubbles between them here (.svg)."),
    ] = None,
    timeout: Annotated[
        float,
        option("--timeout", "Seconds to wait for the batches.", min=0.1),
    ] = 20.0,
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
    """Listen to a running pipeline and say where the time of its batches goes, part by part."""
    import secrets

    from client.settings import ClientSettings, random_client_name
    from client.trace_parts import decompose
    from contract.errors import DeliveryError, SettingsError
    from shardline.connecting import connect_to
    from shardline.console import err, out, print_json, set_up_logging, steps
    from shardline.report.gantt import check_picture_name, write_gantt
    from shardline.trace_table import document, parts_table, remarks
    from shardline.tracing import feed as feed_batches
    from shardline.tracing import listen

    set_up_logging(verbose)
    if feed and client is not None:
        raise SettingsError(
            "--feed and --client: made-up batches are this client's own; choose one"
        )
    if window is not None and not feed:
        raise SettingsError("--window: only with --feed; who feeds the pipeline has its own")
    if picture is not None:
        check_picture_name(picture)
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    user = connect.address.username
    with steps("tracing") as step:
        if feed:
            settings = ClientSettings(
                name=user or random_client_name(),
                cluster=cluster,
                window=window,
                ready_timeout_s=ready_timeout,
            )
            found = feed_batches(settings, connect, connect.elsewhere, batches, timeout, step)
        else:
            name = user or f"observer-{secrets.token_hex(4)}"
            found = listen(connect, cluster, name, client, batches, timeout, step)
    timed = decompose(found.traces, found.clocks)
    if not timed.batches:
        raise DeliveryError(
            f"{len(found.traces)} batches came, and none can be placed in one time: a device's "
            "clock was set meanwhile, or a stage tells no times; try again"
        )
    if perfetto is not None:
        _write_perfetto(timed.batches, found.client, perfetto)
    if picture is not None:
        write_gantt(timed.batches, found.model or "the pipeline", picture)
    if as_json:
        print_json(document(timed, found.client))
        return
    out.print(parts_table(timed, found.client))
    for line in remarks(timed):
        out.print(line, markup=False, soft_wrap=True)
    if len(found.traces) < batches:
        err.print(f"{len(found.traces)} of {batches} batches came within {timeout:g} s")
    if found.others:
        others = ", ".join(found.others)
        err.print(f"others feed, too: {others} (--client NAME)", markup=False, soft_wrap=True)
    for file in (perfetto, picture):
        if file is not None:
            out.print(f"written to {file}", markup=False, soft_wrap=True)


def _write_perfetto(batches: "tuple[TimedBatch, ...]", client: str, file: Path) -> None:
    from client.perfetto import chrome_trace
    from contract.errors import SettingsError

    try:
        file.write_text(json.dumps(chrome_trace(batches, client)), encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"--perfetto {file}: cannot be written ({error.strerror}); expected a file in a folder "
            "that exists, for example trace.json"
        ) from error
