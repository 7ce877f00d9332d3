"""`shardline metrics`: prints, records or serves what a cluster publishes of itself."""

import secrets
from pathlib import Path
from typing import Annotated

from shardline import options
from shardline.options import option


def run(
    csv: Annotated[
        Path | None,
        option("--csv", "Record batches, devices, stages and pipeline to CSV files here."),
    ] = None,
    profile: Annotated[
        Path | None,
        option(
            "--profile",
            "Record each plan, its prediction and its measured times to this JSON file.",
            variable="METRICS_PROFILE",
        ),
    ] = None,
    append: Annotated[
        bool, option("--append", "Go on with files that are there, instead of refusing.")
    ] = False,
    prometheus: Annotated[
        str | None,
        option("--prometheus", "Serve Prometheus at [HOST:]PORT; without HOST on loopback."),
    ] = None,
    home_assistant: Annotated[
        bool,
        option("--home-assistant", "Tell Home Assistant what to show (MQTT discovery)."),
    ] = False,
    home_assistant_remove: Annotated[
        bool, option("--home-assistant-remove", "Take back what Home Assistant was told.")
    ] = False,
    seconds: Annotated[
        float | None,
        option(
            "--seconds",
            "How long; default: until Ctrl-C.",
            variable="METRICS_SECONDS",
            min=0.1,
        ),
    ] = None,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Print what the pipeline does, a line a second; or record it, or serve it."""
    from contract.errors import SettingsError
    from contract.topics import check_name
    from shardline.connecting import connect_to
    from shardline.console import set_up_logging
    from shardline.recording import Wanted, announce, watch, withdraw

    set_up_logging(verbose)
    check_name("cluster", cluster)
    tells = home_assistant or home_assistant_remove
    if tells and (csv or profile or prometheus or append):
        raise SettingsError(
            "--home-assistant: cannot be combined with --csv, --profile or --prometheus, which an "
            "observer does; Home Assistant is told by a user that may write. Run them side by side"
        )
    if home_assistant and home_assistant_remove:
        raise SettingsError("--home-assistant and --home-assistant-remove: choose one")
    if as_json and (tells or (prometheus and csv is None and profile is None)):
        raise SettingsError(
            "--json: nothing is printed with --prometheus or --home-assistant alone; leave one out"
        )
    if append and csv is None and profile is None:
        raise SettingsError("--append: go on with what? Also give --csv or --profile")
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    name = connect.address.username or f"observer-{secrets.token_hex(4)}"
    if home_assistant:
        announce(connect, cluster, name, seconds)
    elif home_assistant_remove:
        withdraw(connect, cluster, name)
    else:
        watch(connect, cluster, name, Wanted(csv, profile, append, prometheus, as_json, seconds))
