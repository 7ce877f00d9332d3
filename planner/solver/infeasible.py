"""Why nothing fits, and the nearest that would. Pure.

Only memory can make a problem infeasible, so the question is always who lacks how much of it, and
whether another number of stages, other devices or more memory would do.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from planner.cost_model import memory_bytes
from planner.problem import MB, DeviceCosts, Problem, StageChoice
from planner.solver.baselines import even, greedy
from planner.solver.bounded import bounded_quickest
from planner.solver.exact import Form, is_exact_size, kinds_for_latency, quickest
from planner.solver.spans import make_spans

Stages = tuple[StageChoice, ...]
Finder = Callable[[Problem, Form], Stages | None]
MORE_DEVICES = 4
"""How many further devices are tried as a remedy."""


@dataclass(frozen=True)
class Shortfall:
    """A device that cannot hold segments ``first`` to ``end``: what it needs and has, in bytes."""

    device: str
    first: int
    end: int
    needed_bytes: int
    free_bytes: int

    @property
    def lacking_bytes(self) -> int:
        """By how much it falls short."""
        return self.needed_bytes - self.free_bytes

    def __str__(self) -> str:
        """As in «segments 0 to 9 need 312 MB on pi-zero, 240 MB free»; ``end`` is not included."""
        what = (
            f"segment {self.first} alone needs"
            if self.end == self.first + 1
            else f"segments {self.first} to {self.end - 1} need"
        )
        needed, free = math.ceil(self.needed_bytes / MB), self.free_bytes // MB
        return f"{what} {needed:,} MB on {self.device}, {free:,} MB free"


def shortfall(problem: Problem, device: DeviceCosts, first: int, end: int) -> Shortfall | None:
    """What a device lacks for a stage, weights unpacked where it can; None if it fits."""
    prepack = device.unpacked_ms is None
    needed = memory_bytes(problem, device, first, end, prepack=True)
    if not prepack:
        needed = min(needed, memory_bytes(problem, device, first, end, prepack=False))
    if device.memory_bytes is None or needed <= device.memory_bytes:
        return None
    return Shortfall(device.name, first, end, needed, device.memory_bytes)


def explain(
    problem: Problem, form: Form, method: Literal["exact", "greedy", "even"] = "exact"
) -> str:
    """One sentence on what fails, and what to do, for a problem that has no solution."""
    if not problem.devices:
        return "there is no device to place the model on; name at least one"
    for first, end in _indivisible(problem, form):
        lacks = [shortfall(problem, device, first, end) for device in problem.devices]
        short = [lack for lack in lacks if lack is not None]
        if len(short) == len(lacks):
            least = min(short, key=lambda lack: lack.lacking_bytes)
            finer = "cut it more finely, " if end > first + 1 else "it cannot be cut further: "
            return f"{least}, and no other device is nearer: {finer}{_more_memory([least])}"
    find: Finder = {"exact": _any_stages, "greedy": greedy, "even": even}[method]
    short = _nearest(problem, form, find)
    if not short:
        return "no plan was found, though none was shown to be impossible; use fewer devices"
    worst = max(short, key=lambda lack: lack.lacking_bytes)
    remedies = [*_other_stages(problem, form, find), *_other_devices(problem, form, find)]
    return f"{worst}: {', or '.join([*remedies, _more_memory(short)])}"


def _indivisible(problem: Problem, form: Form) -> Iterator[tuple[int, int]]:
    """What has to lie on one device, whatever is chosen."""
    nodes = form.boundaries or range(problem.num_segments + 1)
    yield from itertools.pairwise(nodes)


def _any_stages(problem: Problem, form: Form) -> Stages | None:
    """Some stages that fit."""
    spans = make_spans(problem.num_segments, form.boundaries)
    counts = [kind.count for kind in kinds_for_latency(problem, spans)]
    single = form.with_single_devices()
    solver = quickest if is_exact_size(counts, spans.count, single) else bounded_quickest
    found = solver(problem, single)
    return None if found is None else found.stages


def _nearest(problem: Problem, form: Form, find: Finder) -> list[Shortfall]:
    """Who would lack what if all devices had just so much more memory that something fits."""

    def stages_with(extra: int) -> Stages | None:
        devices = tuple(
            replace(
                device,
                memory_bytes=None if device.memory_bytes is None else device.memory_bytes + extra,
            )
            for device in problem.devices
        )
        return find(replace(problem, devices=devices), form)

    whole = (shortfall(problem, device, 0, problem.num_segments) for device in problem.devices)
    high = max((lack.lacking_bytes for lack in whole if lack is not None), default=0)
    low, step = 0, max(1, high // 4096)
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if stages_with(middle) else (middle, high)
    stages = stages_with(high) or ()
    lacks = (
        shortfall(problem, problem.device(name), stage.first, stage.end)
        for stage in stages
        for name in stage.devices
    )
    return [lack for lack in lacks if lack is not None]


def _more_memory(short: list[Shortfall]) -> str:
    each = [f"{lack.device} {math.ceil(lack.lacking_bytes / MB):,} MB" for lack in short]
    return f"give {' and '.join(each)} more"


def _other_stages(problem: Problem, form: Form, find: Finder) -> Iterator[str]:
    """The number of stages next to the one asked for with which it fits."""
    if form.num_stages is None or form.boundaries is not None:
        return
    asked = form.num_stages
    most = min(problem.num_segments, len(problem.devices))
    for number in sorted(range(1, most + 1), key=lambda n: (abs(n - asked), -n)):
        other = replace(form, num_stages=number, max_devices=max(form.max_devices, number))
        if number != asked and find(problem, other) is not None:
            yield f"use {number} stage{'s' if number > 1 else ''}"
            return


def _other_devices(problem: Problem, form: Form, find: Finder) -> Iterator[str]:
    """A device to leave out (methods that do not choose), more to be allowed, or more to add."""
    for left_out in problem.devices:
        others = tuple(device for device in problem.devices if device is not left_out)
        fewer = replace(form, max_devices=min(form.max_devices, len(others)))
        enough = (form.num_stages or 1) <= len(others)
        if enough and others and find(replace(problem, devices=others), fewer) is not None:
            yield f"drop {left_out.name}"
            break
    if form.num_stages is not None:
        return
    total = len(problem.devices)
    for number in range(form.max_devices + 1, total + 1):
        if find(problem, replace(form, max_devices=number)) is not None:
            yield f"allow {number} devices"
            return
    roomiest = max(problem.devices, key=lambda device: device.memory_bytes or 0)
    for number in range(1, MORE_DEVICES + 1):
        copies = tuple(replace(roomiest, name=f"{roomiest.name} {i}") for i in range(number))
        more = replace(problem, devices=(*problem.devices, *copies))
        if find(more, replace(form, max_devices=total + number)) is not None:
            yield f"add {number} more like {roomiest.name}"
            return
