"""From a measured profile to the numbers that a plan is decided by. Pure."""

import math

from contract.errors import SettingsError
from contract.profile import DeviceProfile, FleetProfile
from planner.cost_model import REFERENCE_BROKER_RELAY
from planner.problem import BrokerCosts, DeviceCosts, Link, RelayCosts

MAX_UNPACKED_FACTOR = 1.1
"""Without prepacking a byte of weights is to take a byte of memory, as the cost model has it. Where
it takes more, which is so for convolutions (ResNet50: 2.2 bytes, and 1.6 when prepacked; x86-64,
onnxruntime 1.23.2), giving prepacking up is not offered."""


MESSAGE_BESIDE_ENGINE, BYTE_BESIDE_ENGINE = 1.8, 1.7
"""A stage pays more for a message than the probe, which sends to itself and checks nothing: it
hands it from thread to thread, remembers it, and finds the caches cold behind its engine. Fitted on
the emulated cluster (bench/cluster): MobileNetV2 on three devices of 0.3 took 5.5 to 7 ms a message
beside its engine where the probe found 3.3, ResNet50 43 to 62 where it found 19 to 38."""
ENGINE_BESIDE_MESSAGES = 1.02
"""And its engine finds the caches cold too."""


def devices_from_profile(profile: FleetProfile, batch_size: int) -> tuple[DeviceCosts, ...]:
    """Every device of a profile at one batch size.

    Raises:
        SettingsError: that batch size was not measured.
    """
    return tuple(_device(device, profile, batch_size) for device in profile.devices)


def broker_from_profile(profile: FleetProfile) -> BrokerCosts:
    """The broker: without a limit where the devices together did not reach it."""
    limit = profile.broker_bytes_per_s if profile.broker_saturated else None
    relay = REFERENCE_BROKER_RELAY
    if profile.broker_message_ms is not None and profile.broker_byte_ms is not None:
        relay = RelayCosts(profile.broker_message_ms, profile.broker_byte_ms)
    return BrokerCosts(bytes_per_s=limit or math.inf, relay=relay)


def _device(device: DeviceProfile, profile: FleetProfile, batch_size: int) -> DeviceCosts:
    timings = device.timings_of(batch_size)
    if timings is None:
        measured = ", ".join(str(size) for size in sorted(profile.batch_sizes))
        raise SettingsError(
            f"the profile of {profile.model} was not measured at batch {batch_size}, but at "
            f"{measured}; plan for one of these, or run `shardline profile MODEL --batch "
            f"{batch_size}`"
        )
    # A pipeline runs without a pause: what counts is the speed that lasts.
    slower = ENGINE_BESIDE_MESSAGES / min(1.0, device.sustained_share or 1.0)
    factor = device.unpacked_factor
    saves = factor is not None and factor <= min(MAX_UNPACKED_FACTOR, device.packing_factor)
    unpacked = timings.unpacked_ms if saves else None
    limits = (device.memory_available_bytes, device.memory_limit_bytes)
    return DeviceCosts(
        name=device.device,
        segment_ms=tuple(ms * slower for ms in timings.segment_ms),
        relay=RelayCosts(
            MESSAGE_BESIDE_ENGINE * device.relay_message_ms,
            BYTE_BESIDE_ENGINE * device.relay_byte_ms,
        ),
        link=Link(
            up_bytes_per_s=device.link_up_bytes_per_s or math.inf,
            down_bytes_per_s=device.link_down_bytes_per_s or math.inf,
            latency_ms=device.link_latency_ms or 0.0,
        ),
        memory_bytes=min(limit for limit in limits if limit is not None),
        base_bytes=device.base_bytes,
        packing_factor=device.packing_factor,
        unpacked_ms=None if unpacked is None else tuple(ms * slower for ms in unpacked),
    )
