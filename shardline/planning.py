"""From the options of `plan` to the planner's terms: devices of a file, calibration images."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from client.sources import fed_input, open_source
from contract.described import DescribedFleet
from contract.errors import SettingsError, SourceError
from contract.plan import Codec
from contract.profile import FleetProfile, load_profile
from deploy.device_file import load_device_file
from planner.choose import formulate_request, inner_edges, rules_of, with_codecs
from planner.devices.boards import broker_costs, described_basis, described_costs, model_facts
from planner.devices.fleet_costs import broker_from_profile, devices_from_profile
from planner.formulate import Site
from planner.graph import SegmentedGraph
from planner.language.profile import unpacked_ratio as decoder_unpacked_ratio
from planner.language.site import check_fleet, decoder_site
from planner.partition import partition
from planner.problem import Problem
from planner.profiler import Profile, profile_segments, unpacked_ratio
from planner.progress import Progress
from planner.request import Calibration, PlanRequest
from planner.what_if import WhatIf, what_if

MAX_CALIBRATION_IMAGES = 1000
MEASURED_SUFFIX = ".json"

SiteMaker = Callable[[Profile], Site]


def site_of_file(path: Path, graph: SegmentedGraph, batch_size: int, threads: int) -> SiteMaker:
    """The devices that a file tells of: measured ones (.json) or described ones (YAML).

    Raises:
        SettingsError: the file cannot be read, or is of another model or batch size.
    """
    if path.suffix == MEASURED_SUFFIX:
        measured = _profile_of(path, graph)
        site = _measured_site(measured, batch_size, str(path))
        return lambda _profile: site
    fleet = load_device_file(path)
    profiles = {
        device.profile: devices_from_profile(_profile_of(Path(device.profile), graph), batch_size)
        for device in fleet.devices
        if device.profile is not None
    }
    model = model_facts(graph)

    def make(profile: Profile) -> Site:
        limited = any(device.memory_bytes is not None for device in fleet.devices)
        ratio = unpacked_ratio(graph, batch_size, threads) if limited else None
        boards = any(device.kind.is_board and device.profile is None for device in fleet.devices)
        # What is published is for one image: a batch takes as many times as long as it does here.
        single = profile_segments(graph, 1, threads) if boards and batch_size > 1 else None
        devices = described_costs(
            fleet, model, profile, batch_size, profiles, single=single, unpacked_ratio=ratio
        )
        return Site(devices, described_basis(fleet, model), broker_costs(fleet))

    return make


def decoder_fleet_of_file(path: Path) -> DescribedFleet:
    """The devices that a YAML file describes, for a language model.

    Raises:
        SettingsError: the file cannot be read, is a measured profile, or names one.
    """
    if path.suffix == MEASURED_SUFFIX:
        raise SettingsError(
            f"{path}: profiles of `shardline profile` are of image models; for a language model "
            "describe the devices in a YAML file, with `kind`, `speed` and `memory`"
        )
    fleet = load_device_file(path)
    check_fleet(fleet)
    return fleet


def decoder_sites(
    fleet: DescribedFleet, graph: SegmentedGraph, batch_size: int, threads: int
) -> SiteMaker:
    """The costs of these devices, once this machine's times are known."""

    def make(profile: Profile) -> Site:
        limited = any(device.memory_bytes is not None for device in fleet.devices)
        ratio = decoder_unpacked_ratio(graph, batch_size, threads) if limited else None
        return decoder_site(fleet, profile, ratio)

    return make


def calibration_of(text: str, graph: SegmentedGraph) -> Calibration:
    """The first images of a source of `infer`, at most so many.

    Raises:
        SourceError: the source holds nothing that the model can take.
    """
    info, spec = graph.model.info, graph.model.inputs[0]
    source = open_source(text, fed_input(info), spec, info.labels)
    items = list(islice(source.items, MAX_CALIBRATION_IMAGES))
    if not items:
        raise SourceError(f"--calibration {text}: none of its pictures could be read")
    return Calibration(
        np.stack([item.tensor for item in items]), tuple(item.label for item in items)
    )


def _measured_site(profile: FleetProfile, batch_size: int, where: str) -> Site:
    return Site(
        devices_from_profile(profile, batch_size),
        f"measured on the devices: {where}",
        broker_from_profile(profile),
    )


def _profile_of(path: Path, graph: SegmentedGraph) -> FleetProfile:
    profile = load_profile(path)
    if profile.digest != graph.model.info.digest:
        raise SettingsError(
            f"{path}: is a profile of {profile.model} with digest {profile.digest[:16]}…, expected "
            f"{graph.model.info.digest[:16]}… of {graph.model.info.name}; measure this model with "
            "`shardline profile`, with the same weights and options"
        )
    return profile


def answer_what_if(graph: SegmentedGraph, request: PlanRequest, progress: Progress) -> WhatIf:
    """What fewer devices, other codecs or something bought would give, by the devices' figures.

    Raises:
        PartitionError: nothing that is asked for is possible; says what would be.
    """
    rules = rules_of(graph, request)
    _, _, problem = formulate_request(graph, request, rules, progress)

    def with_codec(codec: Codec) -> Problem:
        return with_codecs(problem, graph, dict.fromkeys(inner_edges(problem), codec))

    solution = partition(problem, rules)
    return what_if(problem, partition, rules, solution, with_codec, progress=progress)
