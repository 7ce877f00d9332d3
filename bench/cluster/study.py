"""Profiles, plans and runs a model on one cluster: what was predicted beside what came.

The devices measure themselves, as `shardline profile` lets them; the planner decides by what they
say; every strategy and partitioner that gives another plan runs in turn with the control.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cluster.compare import PlanRow, compare
from bench.cluster.devices import EmulatedDevice
from bench.cluster.rig import Cluster
from bench.cluster.workers import ControlWorkers
from contract.errors import PartitionError
from contract.plan import Plan
from contract.prediction import Strategy
from contract.profile import DeviceProfile, FleetProfile
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.devices.fleet_costs import broker_from_profile, devices_from_profile
from planner.devices.measure_device import ProfileRequest
from planner.devices.profile_cache import ProfileCache
from planner.devices.profile_fleet import FleetProfiler
from planner.formulate import Site
from planner.graph import SegmentedGraph, segment_graph
from planner.importers import ImportOptions, import_model
from planner.importers.imported_model import ImportedModel
from planner.profiler import Profile, profile_segments
from planner.request import PlanRequest
from planner.rules import Method

PATIENCE_S = 60.0
CONTROL_S = 4.0
PROFILE = ProfileRequest(budget_s=4.0, probe_s=2.0)


@dataclass(frozen=True)
class Model:
    """A model that is imported once for all settings, and this machine's times of it."""

    name: str
    imported: ImportedModel
    graph: SegmentedGraph
    here: Profile


def load(name: str, batch: int) -> Model:
    """A torchvision model with random weights."""
    imported = import_model(f"torchvision:{name}", ImportOptions(weights="random"))
    graph = segment_graph(canonicalise(imported))
    return Model(name, imported, graph, profile_segments(graph, batch))


@dataclass(frozen=True)
class Wanted:
    """A plan to build: how the devices are to be used, and how the cuts are found."""

    name: str
    strategy: Strategy | None = None
    method: Method = "exact"
    codec: str = "float32"


ALTERNATIVES = (
    Wanted("recommended"),
    Wanted("single", "single"),
    Wanted("replicas", "replicas"),
    Wanted("pure-pipeline", "pipeline"),
    Wanted("mixed", "mixed"),
    Wanted("greedy", "pipeline", "greedy"),
    Wanted("even", "pipeline", "even"),
)
SCALING = (Wanted("recommended"), Wanted("pure-pipeline", "pipeline"))


@dataclass(frozen=True)
class Setting:
    """What was measured on one cluster. ``recommended`` names the plan that the verdict chose."""

    model: str
    devices: tuple[EmulatedDevice, ...]
    broker_mbit: float
    rows: tuple[PlanRow, ...]
    recommended: str
    same: dict[str, str]
    """Plans that are the same as another one, by name."""
    control_when_profiled: tuple[float, ...]
    """Images a second of the control before and after the devices measured themselves."""
    relay_ms: dict[str, tuple[float, float]]
    """What each device found for a message: ms, and ms a byte."""


def study(
    model: Model,
    devices: Sequence[EmulatedDevice],
    broker_mbit: float,
    wanted: Sequence[Wanted],
    rounds: int,
    seconds: float,
    batch: int = 1,
    kept: Path | None = None,
) -> Setting:
    """One setting: measure the devices, plan, run everything in turn.

    ``kept`` is a folder for what the same devices took for this model: measured once, whatever the
    links are.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="study-")))
        cluster = stack.enter_context(Cluster(devices, broker_mbit, broker_mbit))
        whole = _build(model, folder, Wanted("whole"), None, batch)
        assert whole is not None
        timings = kept or folder
        with cluster.control(whole, folder / "whole") as workers, cluster.limited():
            then = [workers.run(CONTROL_S).together]
            profile = profile_devices(cluster, workers, model.graph, timings, batch)
            then.append(workers.run(CONTROL_S).together)
        then = _of_first_time(timings / "control.json", then)
        site = Site(
            devices_from_profile(profile, batch),
            "measured on the emulated devices",
            broker_from_profile(profile),
        )
        plans: dict[str, Plan] = {}
        same: dict[str, str] = {}
        for one in wanted:
            built = _build(model, folder, one, site, batch)
            if built is None:
                continue
            twin = next((n for n, p in plans.items() if _runs_the_same(p, built)), None)
            if twin is None:
                plans[one.name] = built
            else:
                same[one.name] = twin
        rows = compare(
            cluster,
            [folder / name for name in plans],
            folder / "whole",
            rounds,
            seconds,
            window=None,
            control_when_profiled=statistics.fmean(then),
        )
    return Setting(
        model.name,
        tuple(devices),
        broker_mbit,
        tuple(rows),
        same.get("recommended", "recommended"),
        same,
        tuple(then),
        {d.device: (d.relay_message_ms, d.relay_byte_ms) for d in profile.devices},
    )


def profile_devices(
    cluster: Cluster, workers: ControlWorkers, graph: SegmentedGraph, folder: Path, batch: int
) -> FleetProfile:
    """What the devices say of themselves, one of each share at a time while all others work.

    The quotas are of control groups that the devices cannot see: to them all are of one kind.
    """
    request = replace(PROFILE, batch_sizes=(batch,))
    of_share: dict[float, DeviceProfile] = {}
    for index, device in enumerate(cluster.devices):
        if device.quota in of_share:
            continue
        cache = ProfileCache(folder / f"profiles-{device.quota}")
        with (
            FleetProfiler(cluster.connect, cluster.cluster, "profiler", cache) as profiler,
            workers.busy(spared=index),
        ):
            budget_s = max(PROFILE.budget_s, 1 / device.quota)  # the slower, the longer a run
            asked = replace(request, devices=(device.name,), budget_s=budget_s)
            (of_share[device.quota],) = profiler.profile(graph, asked, PATIENCE_S).devices
    with FleetProfiler(cluster.connect, cluster.cluster, "profiler", cache) as profiler:
        together = profiler.profile(graph, request, PATIENCE_S)
    devices = tuple(
        of_share[device.quota].model_copy(update={"device": device.name})
        for device in cluster.devices
    )
    return together.model_copy(update={"devices": devices})


def _of_first_time(file: Path, control: list[float]) -> list[float]:
    """The control of when the timings that are kept beside ``file`` were measured."""
    if not file.exists():
        file.write_text(json.dumps(control))
    return list(json.loads(file.read_text()))


def _build(
    model: Model, folder: Path, wanted: Wanted, site: Site | None, batch: int
) -> Plan | None:
    request = PlanRequest(
        wanted.name,
        folder,
        num_stages=1 if site is None else None,
        batch_size=batch,
        partitioner=wanted.method,
        strategy=wanted.strategy,
        codec=wanted.codec,  # type: ignore[arg-type]
        site=None if site is None else lambda _profile: site,
        profile=model.here,
    )
    try:
        return build_plan(model.imported, model.graph, request)
    except PartitionError as error:
        print(f"  {wanted.name}: {error}")
        return None


def _runs_the_same(one: Plan, other: Plan) -> bool:
    return (one.plan_id, one.placement) == (other.plan_id, other.placement)
