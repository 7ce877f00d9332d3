"""`shardline publish --watch`: runs the planner's service until it is told to stop."""

import logging
import signal
import sys
import time
from pathlib import Path

from broker.transport import Connect
from contract.plan import Plan
from planner.formulate import Site
from planner.graph import SegmentedGraph
from planner.profiler import Profile
from planner.watch.family import Family
from planner.watch.notice import Notice
from planner.watch.replanner import Replanner, SiteOfFile
from planner.watch.service import PlannerService, WatchSettings
from shardline.planning import site_of_file


def watch_plan(
    settings: WatchSettings,
    folder: Path,
    built: Plan,
    connect: Connect,
    device_file: Path | None,
    *,
    as_json: bool,
) -> None:
    """Publish the plan of a folder and keep it fitting its devices, until SIGTERM or Ctrl-C.

    Args:
        settings: of the service.
        folder: of the plan, with its shards.
        built: the plan as it is in the folder.
        connect: to the broker.
        device_file: tells what the devices cost; None for what the plan says, or the cache.
        as_json: one JSON object a line on stdout, instead of lines for people.

    Raises:
        BrokerUnreachableError, NotAuthorisedError: no connection at first.
        ShardError: the folder of the plan lacks a shard.
    """
    if not logging.getLogger().isEnabledFor(logging.INFO):
        # Events are told below in the same words: once is enough.
        logging.getLogger("broker.reporter").setLevel(logging.ERROR)
    family = Family(folder, built)
    replanner = Replanner(family, settings.cluster, site_of_file=_sites(device_file, built))
    service = PlannerService(
        settings, family, replanner, connect, _print_json if as_json else _print_line
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()


def _sites(device_file: Path | None, built: Plan) -> SiteOfFile | None:
    if device_file is None:
        return None

    def site(graph: SegmentedGraph, profile: Profile) -> Site:
        return site_of_file(device_file, graph, built.batch_size, profile.threads)(profile)

    return site


def _print_json(told: Notice) -> None:
    _write(told.model_dump_json())


def _print_line(told: Notice) -> None:
    clock = time.strftime("%H:%M:%S", time.localtime(told.time_unix_s))
    where = "" if not told.stages else f" [{' > '.join('+'.join(s) for s in told.stages)}]"
    _write(f"{clock} {told.kind.replace('_', ' ')}: {told.detail}{where}")


def _write(line: str) -> None:
    """At once, also into a pipe: it is a log."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
