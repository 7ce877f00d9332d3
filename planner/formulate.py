"""From a model's graph, what was measured, and the devices to the numbers of a decision."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planner.activations import peak_activation_bytes
from planner.cost_model import REFERENCE_RELAY
from planner.graph import SegmentedGraph, edge_bytes
from planner.problem import BrokerCosts, ClientCosts, DeviceCosts, Problem

LEAST_SEGMENT_MS = 1e-4


@dataclass(frozen=True)
class Site:
    """Where a plan is to run. ``based_on`` says in a sentence where the figures come from.

    ``are_known`` tells devices that have names from stand-ins, which only help to cut.
    """

    devices: tuple[DeviceCosts, ...]
    based_on: str
    broker: BrokerCosts = field(default_factory=BrokerCosts)
    client: ClientCosts = field(default_factory=lambda: ClientCosts(REFERENCE_RELAY))
    are_known: bool = True


def stand_ins(segment_ms: Sequence[float], count: int) -> Site:
    """``count`` devices like this machine, without limits: what a plan is cut for when no device is
    known."""
    return Site(
        devices=tuple(
            DeviceCosts(f"device-{index}", tuple(segment_ms), REFERENCE_RELAY)
            for index in range(count)
        ),
        based_on="this machine's times, without links and memory limits",
        are_known=False,
    )


def formulate(graph: SegmentedGraph, site: Site, batch_size: int) -> Problem:
    """The problem of placing ``graph`` on ``site``, all activations as they are."""
    edges = tuple(edge_bytes(graph, batch_size))
    return Problem(
        devices=tuple(_measurable(device) for device in site.devices),
        weight_bytes=tuple(segment.weight_bytes for segment in graph.segments),
        activation_bytes=tuple(peak_activation_bytes(graph, batch_size)),
        edge_bytes=edges,
        edge_cut_bytes=edges,
        batch_size=batch_size,
        broker=site.broker,
        client=site.client,
    )


def _measurable(device: DeviceCosts) -> DeviceCosts:
    """A segment whose work was fused into a neighbour's takes next to nothing, but not nothing: a
    stage of such segments must have times that can be corrected."""

    def floored(times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(max(ms, LEAST_SEGMENT_MS) for ms in times)

    unpacked = None if device.unpacked_ms is None else floored(device.unpacked_ms)
    return replace(device, segment_ms=floored(device.segment_ms), unpacked_ms=unpacked)
