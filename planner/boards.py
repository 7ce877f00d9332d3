"""Costs of devices that nobody has measured: this machine's profile, scaled to published figures.

Which segment takes which share of the time is measured here; how long all of them take together is
what is published for the kind of board. Pure.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from contract.described import DescribedDevice
from contract.kind import Kind
from planner.cost_model import REFERENCE_RELAY
from planner.graph import SegmentedGraph
from planner.problem import DeviceCosts, Link, RelayCosts
from planner.profiler import Profile
from planner.published import BOARDS, FLOPS_PER_IMAGE, OTHER_LINK, Board

SAME_FLOPS = 1.1
"""A model of a published name is the published one if its operations differ by less: another number
of classes is nothing, another input size is."""
_TORCHVISION = "torchvision:"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a published figure is found by. ``name`` is as it was given: torchvision:resnet50."""

    name: str
    flops_per_image: int


def model_facts(graph: SegmentedGraph) -> ModelFacts:
    """Of a model in segments."""
    flops = sum(segment.flops_per_image for segment in graph.segments)
    return ModelFacts(graph.model.info.name, flops)


@dataclass(frozen=True, slots=True)
class Estimate:
    """``ms`` is of the whole model for one image; ``based_on`` says in a sentence where from."""

    ms: float
    based_on: str


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
    estimate = _estimate(device, model)
    total = sum(reference.segment_ms)
    if estimate is None:
        scale = batch_size / reference.batch_size / device.speed
        relay_scale = 1 / device.speed
    else:
        scale = estimate.ms * _images_worth(batch_size, reference, single) / (total or 1.0)
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
    return overlaid(usual_link(device.kind), device)


def usual_link(kind: Kind | None) -> Link:
    """What a kind has; None stands for a machine that nothing is known of."""
    board = BOARDS.get(kind) if kind is not None else None
    return board.link if board else OTHER_LINK


def overlaid(link: Link, device: DescribedDevice) -> Link:
    """``link`` with what the file gives put over it."""
    given = {
        "up_bytes_per_s": device.up_bytes_per_s,
        "down_bytes_per_s": device.down_bytes_per_s,
        "latency_ms": device.latency_ms,
    }
    return replace(link, **{name: value for name, value in given.items() if value is not None})


def basis(device: DescribedDevice, model: ModelFacts) -> str:
    """Where a device's times come from, in one sentence without a full stop."""
    if device.profile is not None:
        return f"measured: {device.profile}"
    estimate = _estimate(device, model)
    if estimate is not None:
        return estimate.based_on
    return f"{device.kind}: this machine's times{_speed_words(device)}"


def _estimate(device: DescribedDevice, model: ModelFacts) -> Estimate | None:
    """None for a kind of which nothing is published: it is another machine like this one."""
    board = BOARDS.get(device.kind)
    if board is None:
        return None
    figures = {**board.whole_ms, **board.estimated_ms}
    anchor = _nearest(figures, model)
    ratio = model.flops_per_image / FLOPS_PER_IMAGE[anchor]
    how = "published" if anchor in board.whole_ms else "estimated from a Pi 4's"
    words = (
        f"{device.kind}: {how}, not measured: ncnn takes {figures[anchor]:.5g} ms for {anchor}; "
        f"x {board.engine_factor:g} for onnxruntime"
    )
    if _is_called(model, anchor) and 1 / SAME_FLOPS < ratio < SAME_FLOPS:
        ratio = 1.0
    else:
        why = "at another input size" if _is_called(model, anchor) else "which has no figure"
        words += f", x {ratio:.3g} for the operations of {model.name}, {why}"
    if device.cores is not None:
        words += f", on {device.cores} of 4 cores"
    ms = figures[anchor] * board.engine_factor * ratio * _cores_factor(board, device.cores)
    return Estimate(ms / device.speed, words + _speed_words(device))


def _images_worth(batch_size: int, reference: Profile, single: Profile | None) -> float:
    """How many times as long as one image a batch takes."""
    if single is None:
        return float(batch_size)
    alone = sum(single.segment_ms) / single.batch_size
    together = sum(reference.segment_ms) / reference.batch_size
    return batch_size * together / (alone or 1.0)


def _nearest(figures: Collection[str], model: ModelFacts) -> str:
    """The model of the same name that there is a figure of, or else of the nearest operations."""
    for name in figures:
        if _is_called(model, name):
            return name
    flops = max(model.flops_per_image, 1)
    return min(figures, key=lambda name: abs(math.log(flops / FLOPS_PER_IMAGE[name])))


def _is_called(model: ModelFacts, name: str) -> bool:
    return model.name == f"{_TORCHVISION}{name}"


def _cores_factor(board: Board, cores: int | None) -> float:
    """Time on so many of the four cores, by that on all: Amdahl's law through one and four."""
    if cores is None:
        return 1.0
    parallel = (board.one_core_ratio - 1) * 4 / 3
    return board.one_core_ratio - parallel + parallel / cores


def _speed_words(device: DescribedDevice) -> str:
    return "" if device.speed == 1.0 else f", at {device.speed:g} times the speed"
