"""Devices into kinds: those that can take each other's place, and those that nearly can.

Pure. Equal devices need not be told apart, which is what makes exact answers affordable.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.problem import DeviceCosts, Link, RelayCosts
from planner.solver.spans import Floats


@dataclass(frozen=True)
class Kind:
    """Devices that cost the same wherever it matters, in the order given."""

    names: tuple[str, ...]
    costs: Floats
    """Whatever decides for the objective: rates, or times, one for each span."""

    @property
    def count(self) -> int:
        """How many devices are of this kind."""
        return len(self.names)


def kinds_of(names: Sequence[str], costs: Mapping[str, Floats]) -> list[Kind]:
    """Devices whose costs are equal for every span are one kind.

    Coarser than :meth:`planner.problem.DeviceCosts.same_kind`: devices that differ only in memory
    of which both have enough are one kind too.
    """
    groups: dict[bytes, list[str]] = {}
    for name in names:
        groups.setdefault(costs[name].tobytes(), []).append(name)
    return [Kind(tuple(members), costs[members[0]]) for members in groups.values()]


def pairs_of_states(counts: Sequence[int]) -> int:
    """In how many ways a set of used devices and a set of further ones can be taken from kinds.

    It is what a step of the exact search costs.
    """
    return math.prod([(count + 1) * (count + 2) // 2 for count in counts])


def similar_groups(
    devices: Sequence[DeviceCosts], affordable: Callable[[Sequence[int]], bool]
) -> list[list[DeviceCosts]] | None:
    """Unite the two most similar groups until their sizes are affordable; None if one is not."""
    groups: list[list[DeviceCosts]] = []
    for device in devices:
        same = next((group for group in groups if group[0].same_kind(device)), None)
        if same is None:
            groups.append([device])
        else:
            same.append(device)
    while not affordable([len(group) for group in groups]):
        if len(groups) == 1:
            return None
        left, right = min(
            itertools.combinations(range(len(groups)), 2),
            key=lambda pair: _spread([*groups[pair[0]], *groups[pair[1]]]),
        )
        groups[left] += groups.pop(right)
    return groups


def _spread(devices: Sequence[DeviceCosts]) -> float:
    """How unlike the devices of a group are, weighted by their number."""
    features = [_features(device) for device in devices]
    widths = [max(values) - min(values) for values in zip(*features, strict=True)]
    return float(sum(widths) * len(devices))


def _features(device: DeviceCosts) -> tuple[float, float, float]:
    """Speed first; then memory and link, which often do not matter."""
    memory = device.memory_bytes if device.memory_bytes is not None else 1 << 40
    slower_link = min(device.link.up_bytes_per_s, device.link.down_bytes_per_s, 1e12)
    return (
        math.log(max(sum(device.segment_ms), 1e-9)),
        0.2 * math.log(max(memory, 1)),
        0.1 * math.log(max(slower_link, 1)),
    )


def best_of(devices: Sequence[DeviceCosts]) -> DeviceCosts:
    """A device that is at least as good as each of these, in every respect.

    Its packed times are the least of packed and unpacked ones: it may have room to pack where a
    device with faster unpacked times has not.
    """
    unpacked = [device.unpacked_ms for device in devices if device.unpacked_ms is not None]
    times = [device.segment_ms for device in devices] + unpacked
    limits = [device.memory_bytes for device in devices]
    return DeviceCosts(
        name="",
        segment_ms=tuple(map(min, zip(*times, strict=True))),
        relay=RelayCosts(
            min(device.relay.message_ms for device in devices),
            min(device.relay.byte_ms for device in devices),
        ),
        link=Link(
            max(device.link.up_bytes_per_s for device in devices),
            max(device.link.down_bytes_per_s for device in devices),
            min(device.link.latency_ms for device in devices),
        ),
        memory_bytes=None
        if any(limit is None for limit in limits)
        else max(limit for limit in limits if limit is not None),
        base_bytes=min(device.base_bytes for device in devices),
        packing_factor=min(device.packing_factor for device in devices),
        unpacked_ms=tuple(map(min, zip(*unpacked, strict=True))) if unpacked else None,
        cut_byte_ms=min(device.cut_byte_ms for device in devices),
    )


def worst_of(devices: Sequence[DeviceCosts]) -> DeviceCosts:
    """A device in whose place each of these can serve: at most as good as any of them."""
    unpacked = [device.unpacked_ms for device in devices if device.unpacked_ms is not None]
    limits = [device.memory_bytes for device in devices if device.memory_bytes is not None]
    slowest = tuple(map(max, zip(*(device.segment_ms for device in devices), strict=True)))
    return DeviceCosts(
        name="",
        segment_ms=slowest,
        relay=RelayCosts(
            max(device.relay.message_ms for device in devices),
            max(device.relay.byte_ms for device in devices),
        ),
        link=Link(
            min(device.link.up_bytes_per_s for device in devices),
            min(device.link.down_bytes_per_s for device in devices),
            max(device.link.latency_ms for device in devices),
        ),
        memory_bytes=min(limits) if limits else None,
        base_bytes=max(device.base_bytes for device in devices),
        packing_factor=max(device.packing_factor for device in devices),
        unpacked_ms=tuple(map(max, zip(*unpacked, slowest, strict=True)))
        if len(unpacked) == len(devices)
        else None,
        cut_byte_ms=max(device.cut_byte_ms for device in devices),
    )


def stand_ins(
    groups: Sequence[Sequence[DeviceCosts]],
    stand_in: Callable[[Sequence[DeviceCosts]], DeviceCosts],
) -> tuple[DeviceCosts, ...]:
    """All devices of the groups by their names, each with the costs of its group's stand-in."""
    found = []
    for group in groups:
        costs = stand_in(group)
        found += [replace(costs, name=device.name) for device in group]
    return tuple(found)
