"""`shardline stage`: the device agent."""

import os
import signal
from pathlib import Path
from typing import Annotated

from shardline import options
from shardline.options import option


def run(
    device: Annotated[str, option("--device", "This device's name, unique in the cluster.")],
    shards: Annotated[
        Path, option("--shards", "Folder with the shards that `shardline plan` wrote.")
    ] = options.SHARDS_DIR,
    cache: Annotated[
        Path | None,
        option(
            "--cache",
            "Folder for shards that the planner hands out; default: shardline/DEVICE in the user's "
            "cache folder.",
        ),
    ] = None,
    cache_limit: Annotated[
        int, option("--cache-limit", "How much the cache may hold, in MB.", min=1)
    ] = 4000,
    heartbeat: Annotated[
        Path | None,
        option("--heartbeat", "File for the health check (`python -m stage.health`)."),
    ] = None,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    engine: options.Engine = "onnxruntime",
    threads: options.Threads = 0,
    prepack: options.Prepack = True,
    verbose: options.Verbose = False,
) -> None:
    """Run this device: obey the published plan, run one shard, until SIGTERM or Ctrl-C."""
    from shardline.connecting import connect_to
    from shardline.console import err, set_up_logging
    from stage.agent import StageAgent, StageSettings
    from stage.cores import available_cores

    set_up_logging(verbose)
    settings = StageSettings(
        device=device,
        shards_dir=shards,
        cache_dir=cache or default_cache(device),
        cache_limit_bytes=cache_limit * 1_000_000,
        heartbeat=heartbeat,
        cluster=cluster,
        engine=engine,
        threads=threads or available_cores(),
        prepack=prepack,
    )
    connect = connect_to(broker, username or device, password_file, ca_file, cert_file, key_file)
    agent = StageAgent(settings, connect, elsewhere=connect.elsewhere)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    err.print(f"device {device}: broker {broker}, shards in {shards}")
    agent.run()


def default_cache(device: str) -> Path:
    """By the XDG base directory specification; each device its own, since one process uses it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "shardline" / device
