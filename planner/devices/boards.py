"""Costs of devices that nobody has measured: this machine's profile, scaled to published figures.

Which segment takes which share of the time is measured here; how long all of them take together is
what is published for the kind of board. Pure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from contract.described import DescribedDevice, DescribedFleet
from contract.errors import SettingsError
from contract.kind import Kind
from planner.cost_model import REFERENCE_BROKER_RELAY, REFERENCE_RELAY
from planner.devices.board_estimates import ModelFacts, estimate, speed_words
from planner.devices.published import BOARDS, OTHER_LINK
from planner.graph import SegmentedGraph
from planner.problem import BrokerCosts, DeviceCosts, Link, RelayCosts
from planner.profiler import Profile


def model_facts(graph: SegmentedGraph) -> ModelFacts:
    """Of a model in segments."""
    flops = sum(segment.flops_per_image for segment in graph.segments)
    return ModelFacts(graph.model.info.name, flops)


def board_costs(
    device: DescribedDevice,
    model: ModelFacts,
    reference: Profile,
    batch_size: int,
    *,
    single: Profile | None = None,
    relay: RelayCosts = REFERENCE_RELAY,
    unpacked_ratio: float | None = None,
) -> DeviceCosts:
    """What ``device`` costs, by its kind and what the file says of it.

    What is published is the time of one image. A batch needs as many times as long as here, if that
    is known, and otherwise as many as it has images: onnxruntime on x86-64, one thread, took for
    eight 7.2 (vgg16) to 9.0 (mobilenet_v2) times as long as for one, but for alexnet 3.5, whose
    time is that of reading its weights.

    Args:
        device: as described.
        model: what the segments add up to.
        reference: the segments' times on this machine, at any batch size.
        batch_size: of the batches that the costs are for.
        single: the same as ``reference`` at a batch of one, to see what a batch needs.
        relay: of this machine.
        unpacked_ratio: how many times as long the model takes with weights that are not prepacked,
            on this machine. None: not measured, and prepacking is not given up.
    """
    found = estimate(device, model)
    total = sum(reference.segment_ms)
    if found is None:
        scale = batch_size / reference.batch_size / device.speed
        relay_scale = 1 / device.speed
    else:
        scale = found.ms * _images_worth(batch_size, reference, single) / (total or 1.0)
        relay_scale = 1 / (BOARDS[device.kind].core_speed * device.speed)
    segment_ms = tuple(scale * ms for ms in reference.segment_ms)
    return DeviceCosts(
        name=device.name,
        segment_ms=segment_ms,
        relay=RelayCosts(relay_scale * relay.message_ms, relay_scale * relay.byte_ms),
        link=link_of(device),
        memory_bytes=device.memory_bytes,
        unpacked_ms=(
            None if unpacked_ratio is None else tuple(unpacked_ratio * ms for ms in segment_ms)
        ),
    )


def link_of(device: DescribedDevice) -> Link:
    """As the file says, and where it says nothing as its kind has it."""
    return _overlaid(_usual_link(device.kind), device)


def basis(device: DescribedDevice, model: ModelFacts) -> str:
    """Where a device's times come from, in one sentence without a full stop."""
    if device.profile is not None:
        return f"measured: {device.profile}"
    found = estimate(device, model)
    if found is not None:
        return found.based_on
    return f"{device.kind}: this machine's times{speed_words(device)}"


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
    """:func:`board_costs` of every device, but of a measured one what was measured.

    Of a profile the device of the same name counts, or the only one that is in it: the devices of
    a ``count`` are alike. The link that the file gives goes before the measured one, and of two
    limits of memory the lower one holds.

    Args:
        profiles: what was measured, by the path that devices name as their profile.
        fleet, model, reference, batch_size, single, relay, unpacked_ratio: as for
            :func:`board_costs`.

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
    """The broker's card, as the file says or as its kind has it, and its processor."""
    board = BOARDS.get(fleet.broker_kind) if fleet.broker_kind is not None else None
    slower = 1 / board.core_speed if board is not None else 1.0
    relay = RelayCosts(
        slower * REFERENCE_BROKER_RELAY.message_ms, slower * REFERENCE_BROKER_RELAY.byte_ms
    )
    if fleet.broker_bytes_per_s is not None:
        return BrokerCosts(fleet.broker_bytes_per_s, relay)
    link = _usual_link(fleet.broker_kind)
    return BrokerCosts(min(link.up_bytes_per_s, link.down_bytes_per_s), relay)


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
        link = _usual_link(device.kind)  # its link was not measured
    limits = [m for m in (measured.memory_bytes, device.memory_bytes) if m is not None]
    return replace(
        measured,
        name=device.name,
        link=_overlaid(link, device),
        memory_bytes=min(limits, default=None),
    )


def _images_worth(batch_size: int, reference: Profile, single: Profile | None) -> float:
    """How many times as long as one image a batch takes."""
    if single is None:
        return float(batch_size)
    alone = sum(single.segment_ms) / single.batch_size
    together = sum(reference.segment_ms) / reference.batch_size
    return batch_size * together / (alone or 1.0)


def _usual_link(kind: Kind | None) -> Link:
    """What a kind has; None stands for a machine that nothing is known of."""
    board = BOARDS.get(kind) if kind is not None else None
    return board.link if board else OTHER_LINK


def _overlaid(link: Link, device: DescribedDevice) -> Link:
    """``link`` with what the file gives put over it."""
    given = {
        "up_bytes_per_s": device.up_bytes_per_s,
        "down_bytes_per_s": device.down_bytes_per_s,
        "latency_ms": device.latency_ms,
    }
    return replace(link, **{name: value for name, value in given.items() if value is not None})
