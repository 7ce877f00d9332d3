"""From answers of devices to the entries of a fleet's profile. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from contract.command import Examination, LinkProbe
from contract.profile import DeviceProfile
from planner.cost_model import REFERENCE_RELAY
from planner.devices.profile_cache import KindTimings, TimingsKey

SATURATED_SHARE = 0.85
"""Together the devices got less than this share of what they got one by one: the broker's limit."""


class BrokerFigures(NamedTuple):
    """See :class:`contract.profile.FleetProfile`."""

    bytes_per_s: float | None
    saturated: bool


def kind_of(examination: Examination) -> str:
    """What decides how fast a device is: board or processor, engine, threads, cores, their limit.

    Two devices of one kind run the same graph in the same time; clocks set by hand are not seen.
    """
    board = examination.board or examination.processor or "unknown processor"
    parts = [board, examination.machine, f"{examination.cores} cores"]
    if examination.processors_limit is not None:
        parts.append(f"limited to {examination.processors_limit:g}")
    parts.append(f"{examination.engine} {examination.engine_version}")
    parts.append(f"{threads_of(examination)} threads")
    return ", ".join(parts)[:500]


def threads_of(examination: Examination) -> int:
    """Threads of the device's engine."""
    return examination.threads or examination.cores


def timings_key(digest: str, examination: Examination, batch_size: int) -> TimingsKey:
    """What a device's times of a model, by its digest, are kept under."""
    return TimingsKey(
        digest=digest,
        kind=kind_of(examination),
        engine=f"{examination.engine} {examination.engine_version}",
        threads=threads_of(examination),
        batch_size=batch_size,
    )


def usable_memory(examination: Examination) -> int:
    """Bytes that a stage's process may have: free ones, and within the container's limit.

    Where there is a container, what it uses now counts as free: a stage would have it.
    """
    limit = examination.memory_limit_bytes
    if limit is None:
        return examination.memory_available_bytes
    return min(limit, examination.memory_available_bytes + (examination.memory_used_bytes or 0))


def describe_device(
    device: str, examination: Examination, timings: Sequence[KindTimings], link: LinkProbe
) -> DeviceProfile:
    """One entry of the profile. ``timings`` are those of the device's kind."""
    largest = max(timings, key=lambda one: one.key.batch_size)
    heaviest = max(timings, key=lambda one: one.packing_factor)
    own = largest.measured_on == device
    shares = [one.sustained_share for one in timings if one.sustained_share is not None]
    relay = REFERENCE_RELAY
    return DeviceProfile(
        device=device,
        kind=kind_of(examination),
        machine=examination.machine,
        engine=examination.engine,
        engine_version=examination.engine_version,
        cores=examination.cores,
        threads=threads_of(examination),
        memory_available_bytes=usable_memory(examination),
        memory_limit_bytes=examination.memory_limit_bytes,
        base_bytes=largest.base_bytes,
        packing_factor=heaviest.packing_factor,
        unpacked_factor=heaviest.unpacked_factor,
        activation_bytes=largest.activation_bytes,
        timings=tuple(one.timings for one in sorted(timings, key=lambda one: one.key.batch_size)),
        relay_message_ms=relay.message_ms if link.message_ms is None else link.message_ms,
        relay_byte_ms=relay.byte_ms if link.byte_ms is None else link.byte_ms,
        sustained_share=min(shares, default=None),
        temperature_before_celsius=largest.temperature_before_celsius
        if own
        else examination.temperature_celsius,
        temperature_after_celsius=largest.temperature_after_celsius if own else None,
        throttled=largest.throttled if own else examination.throttled,
        busy=link.busy or any(one.busy for one in timings),
        link_up_bytes_per_s=link.up_bytes_per_s,
        link_down_bytes_per_s=link.down_bytes_per_s,
        link_latency_ms=link.latency_ms,
        time_unix_s=min(one.time_unix_s for one in timings),
    )


def broker_figures(alone: Sequence[LinkProbe], together: Sequence[LinkProbe]) -> BrokerFigures:
    """What passed the broker with all devices sending, and whether it could not carry more.

    None where a probe failed. A single device says nothing of the broker's limit.
    """
    one_by_one = [probe.through_bytes_per_s for probe in alone]
    at_once = [probe.through_bytes_per_s for probe in together]
    known_alone = [rate for rate in one_by_one if rate is not None]
    known = [rate for rate in at_once if rate is not None]
    if not known or len(known) < len(at_once):
        return BrokerFigures(None, False)
    complete = len(known_alone) == len(one_by_one) and len(known) > 1
    saturated = complete and sum(known) < SATURATED_SHARE * sum(known_alone)
    return BrokerFigures(sum(known), saturated)
