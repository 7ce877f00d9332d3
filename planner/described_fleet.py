"""Costs of a described fleet: each device by its kind, or by the profile that it names; the broker.

Pure: whoever calls reads the profiles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from contract.described import DescribedDevice, DescribedFleet
from contract.errors import SettingsError
from planner.boards import ModelFacts, basis, board_costs, overlaid, usual_link
from planner.cost_model import REFERENCE_RELAY
from planner.problem import BrokerCosts, DeviceCosts, RelayCosts
from planner.profiler import Profile


def described_costs(
    fleet: DescribedFleet,
    model: ModelFacts,
    reference: Profile,
    batch_size: int,
    profiles: Mapping[str, Sequence[DeviceCosts]] | None = None,
    *,
    single: Profile | None = None,
    relay: RelayCosts = REFERENCE_RELAY,
    unpacked_ratio: float | None = None,
) -> tuple[DeviceCosts, ...]:
    """:func:`planner.boards.board_costs` of every device, but of a measured one what was measured.

    Of a profile the device of the same name counts, or the only one that is in it: the devices of
    a ``count`` are alike. The link that the file gives goes before the measured one, and of two
    limits of memory the lower one holds.

    Args:
        profiles: what was measured, by the path that devices name as their profile.
        fleet, model, reference, batch_size, single, relay, unpacked_ratio: as for
            :func:`planner.boards.board_costs`.

    Raises:
        SettingsError: ``profiles`` has nothing of a device that names one, or it is of another
            number of segments.
    """
    found = []
    for device in fleet.devices:
        if device.profile is None:
            costs = board_costs(
                device,
                model,
                reference,
                batch_size,
                single=single,
                relay=relay,
                unpacked_ratio=unpacked_ratio,
            )
        else:
            profile = (profiles or {}).get(device.profile, ())
            costs = _measured(device, profile, len(reference.segment_ms))
        found.append(costs)
    return tuple(found)


def broker_costs(fleet: DescribedFleet) -> BrokerCosts:
    """The broker's card: as the file says, or as the kind of its machine has it.

    What Mosquitto takes of the processor is not known for any board and counts as nothing.
    """
    if fleet.broker_bytes_per_s is not None:
        return BrokerCosts(fleet.broker_bytes_per_s)
    link = usual_link(fleet.broker_kind)
    return BrokerCosts(min(link.up_bytes_per_s, link.down_bytes_per_s))


def described_basis(fleet: DescribedFleet, model: ModelFacts) -> str:
    """Where the times of all devices come from, each source once."""
    return "; ".join(dict.fromkeys(basis(device, model) for device in fleet.devices))


def _measured(
    device: DescribedDevice, profile: Sequence[DeviceCosts], num_segments: int
) -> DeviceCosts:
    measured = next((costs for costs in profile if costs.name == device.name), None)
    if measured is None and len(profile) == 1:
        measured = profile[0]
    if measured is None:
        names = ", ".join(costs.name for costs in profile) or "no device"
        raise SettingsError(
            f"device {device.name}: the profile {device.profile} has {names}; measure this device "
            "with `shardline profile`, name it as there, or remove `profile`"
        )
    if len(measured.segment_ms) != num_segments:
        raise SettingsError(
            f"device {device.name}: the profile {device.profile} is of a model with "
            f"{len(measured.segment_ms)} segments, this one has {num_segments}; measure this model "
            "with `shardline profile`"
        )
    link = measured.link
    if math.isinf(link.up_bytes_per_s) and math.isinf(link.down_bytes_per_s):
        link = usual_link(device.kind)  # its link was not measured
    limits = [m for m in (measured.memory_bytes, device.memory_bytes) if m is not None]
    return replace(
        measured,
        name=device.name,
        link=overlaid(link, device),
        memory_bytes=min(limits, default=None),
    )
