"""How long a model takes on a board by published figures, and in words by which. Pure."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from contract.described import DescribedDevice
from planner.devices.published import BOARDS, FLOPS_PER_IMAGE, Board

SAME_FLOPS = 1.1
"""A model of a published name is the published one if its operations differ by less: another number
of classes is nothing, another input size is."""
_TORCHVISION = "torchvision:"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a published figure is found by. ``name`` is as it was given: torchvision:resnet50."""

    name: str
    flops_per_image: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """``ms`` is of the whole model for one image; ``based_on`` says in a sentence where from."""

    ms: float
    based_on: str


def estimate(device: DescribedDevice, model: ModelFacts) -> Estimate | None:
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
    return Estimate(ms / device.speed, words + speed_words(device))


def speed_words(device: DescribedDevice) -> str:
    """How much faster than its kind a device is said to be; empty where nothing is said."""
    return "" if device.speed == 1.0 else f", at {device.speed:g} times the speed"


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
