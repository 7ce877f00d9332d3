"""What the devices of a plan cost, without measuring again. Pure, but for the cache that it reads.

A fleet that runs batches cannot be measured: the figures would be those of a busy device. So what
was known when the plan was made is used, or what the cache of profiles has (docs/adr/0028).
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from contract.command import Examination, LinkProbe
from contract.plan import Plan
from contract.prediction import DevicePrediction
from contract.profile import FleetProfile
from planner.cost_model import REFERENCE_RELAY, receive_ms, send_ms
from planner.devices.fleet_costs import devices_from_profile
from planner.devices.profile_cache import ProfileCache
from planner.devices.profile_report import describe_device, timings_key, usable_memory
from planner.formulate import Site
from planner.graph import SegmentedGraph
from planner.problem import DeviceCosts, Link, RelayCosts
from planner.profiler import Profile

MS_PER_FLOP = 1e-7
"""Of segments that nobody has timed: only their proportions matter then."""


def profile_of_plan(plan: Plan, graph: SegmentedGraph) -> Profile:
    """The segments' times that the plan was decided by, on its fastest device.

    Where the plan has none, floating-point operations stand in for them.
    """
    if len(plan.segments) == graph.num_segments:
        times = tuple(segment.ms for segment in plan.segments)
    else:
        flops = (segment.flops_per_image for segment in graph.segments)
        times = tuple(MS_PER_FLOP * plan.batch_size * each for each in flops)
    return Profile(times, sum(times), plan.batch_size, threads=1, rounds=0)


def site_of_plan(plan: Plan, segment_ms: Sequence[float], devices: Collection[str]) -> Site:
    """The devices by the plan's own figures: how much slower each was taken to be, and its limits.

    A device that the plan knows nothing of is taken to be as slow as the slowest that it knows.

    Args:
        plan: as it was built, with its prediction if there was one.
        segment_ms: on its fastest device.
        devices: those to plan for.
    """
    predicted = {each.device: each for each in plan.prediction.devices} if plan.prediction else {}
    slowness = _slowness(plan, segment_ms)
    slowest = max(slowness.values(), default=1.0)
    found = []
    for name in sorted(devices):
        factor, known = slowness.get(name, slowest), predicted.get(name)
        limit = None if known is None else known.memory_limit_bytes
        found.append(
            DeviceCosts(
                name=name,
                segment_ms=tuple(factor * ms for ms in segment_ms),
                relay=_relay(plan, known, factor),
                link=Link() if known is None else _link(plan, known),
                memory_bytes=limit,
            )
        )
    return Site(tuple(found), f"the figures of plan {plan.plan_id}")


def site_of_cache(
    cache: ProfileCache,
    plan: Plan,
    num_segments: int,
    devices: Mapping[str, Examination | None],
) -> Site | None:
    """The devices by what was measured before on their kinds; None unless all are known.

    Measured and assumed times must not stand side by side: they would be compared.
    """
    profiles = []
    for name, examination in sorted(devices.items()):
        if examination is None:
            return None
        timings = cache.get(timings_key(plan.model.digest, examination, plan.batch_size))
        if timings is None or len(timings.timings.segment_ms) != num_segments:
            return None
        link = LinkProbe(request_id=examination.request_id)  # not measured now
        profiles.append(describe_device(name, examination, [timings], link))
    if not profiles:
        return None
    fleet = FleetProfile(
        digest=plan.model.digest,
        model=plan.model.name,
        batch_sizes=(plan.batch_size,),
        devices=tuple(profiles),
        time_unix_s=round(time.time(), 3),
    )
    # Memory is seen to in `with_memory`: what is free now is not all that a stage could have.
    costs = tuple(
        replace(device, memory_bytes=None)
        for device in devices_from_profile(fleet, plan.batch_size)
    )
    return Site(costs, "measured before on devices of these kinds")


def with_memory(site: Site, current: Plan, examinations: Mapping[str, Examination]) -> Site:
    """The same devices, with no more memory than each says that it has for a stage.

    Without a container's limit a device tells what is free beside the shard that it holds now; that
    shard would go.
    """
    devices = []
    for device in site.devices:
        limits = [] if device.memory_bytes is None else [device.memory_bytes]
        examination, stage = examinations.get(device.name), current.stage_of(device.name)
        if examination is not None:
            limits.append(usable_memory(examination))
            if examination.memory_limit_bytes is None and stage is not None:
                held = device.base_bytes + device.packing_factor * stage.weight_bytes
                limits[-1] += round(held)
        devices.append(replace(device, memory_bytes=min(limits, default=None)))
    return replace(site, devices=tuple(devices))


def _slowness(plan: Plan, segment_ms: Sequence[float]) -> dict[str, float]:
    """How many times as long as ``segment_ms`` each device of the plan takes."""
    if plan.prediction is None:
        return {
            replica.device: 1 / replica.speed
            for spot in plan.placement
            for replica in spot.replicas
        }
    found = {}
    for device in plan.prediction.devices:
        stage = plan.stages[device.stage_index]
        own_ms = sum(segment_ms[stage.first_segment : stage.end_segment])
        if own_ms > 0 and device.compute_ms > 0:
            found[device.device] = device.compute_ms / own_ms
    return found


def _relay(plan: Plan, known: DevicePrediction | None, factor: float) -> RelayCosts:
    """What messages cost its processor: as predicted, or by how slow it is."""
    if known is not None:
        taken, sent = _edge_bytes(plan, known)
        reference_ms = receive_ms(taken) + send_ms(sent)
        factor = known.relay_ms / reference_ms
    return RelayCosts(factor * REFERENCE_RELAY.message_ms, factor * REFERENCE_RELAY.byte_ms)


def _link(plan: Plan, known: DevicePrediction) -> Link:
    """Its link, the same in both directions, from the time of the larger of its messages."""
    if known.transfer_ms <= 0:
        return Link()
    rate = max(_edge_bytes(plan, known)) / known.transfer_ms * 1e3
    return Link(rate or math.inf, rate or math.inf)


def _edge_bytes(plan: Plan, known: DevicePrediction) -> tuple[int, int]:
    index = known.stage_index
    return plan.edge_bytes(index, plan.batch_size), plan.edge_bytes(index + 1, plan.batch_size)
