"""Which device serves which stage, and the topics and brokers that follow from it."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from contract import topics
from contract.frozen import FrozenModel

MAX_STAGES = 256
"""Of a plan: more names would not fit into the header of a message with their times."""
MAX_ADDRESS = 262  # the longest host name, a colon, five digits
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*))(?::([0-9]{1,5}))?")


def _device_name(name: str) -> str:
    if not topics.is_name(name):
        raise ValueError(f"{name!r:.80} cannot be the name of a device")
    return name


def _broker_address(text: str) -> str:
    match = _ADDRESS.fullmatch(text) if len(text) <= MAX_ADDRESS else None
    if match is None or not 0 < int(match[1] or 1) < 65536:
        raise ValueError(f"{text!r:.80}: expected host or host:port, for example pi-8:1883")
    return text


class Replica(FrozenModel):
    """A device that serves a stage. ``speed`` weighs its share of the batches.

    ``prepack``: whether its engine may keep a reordered copy of the weights, which is faster.
    """

    device: Annotated[str, AfterValidator(_device_name)]
    speed: float = Field(default=1.0, gt=0)
    prepack: bool = True


class Placement(FrozenModel):
    """The devices of one stage."""

    stage_index: int = Field(ge=0)
    replicas: tuple[Replica, ...] = Field(min_length=1)


class EdgeBroker(FrozenModel):
    """A broker of its own for one edge.

    Edge ``k`` carries the inputs of stage ``k``; the edge after the last stage carries the results.
    """

    edge: int = Field(ge=0)
    address: Annotated[str, AfterValidator(_broker_address)]


class StageTopics(FrozenModel):
    """One line of the topic map: where a device listens for a stage, and where its output goes."""

    stage_index: int
    device: str
    subscribes: str
    publishes: tuple[str, ...]


def map_topics(plan_id: str, places: Sequence[Placement], cluster: str) -> tuple[StageTopics, ...]:
    """One line for each device: what it subscribes to, and where its outputs may go."""
    lines = []
    following: Sequence[Placement | None] = [*places[1:], None]
    for place_here, place_next in zip(places, following, strict=True):
        for replica in place_here.replicas:
            if place_next is None:
                publishes = [topics.result_topic(cluster, "CLIENT", replica.device)]
            else:
                publishes = [
                    topics.input_topic(
                        cluster, to.device, plan_id, place_next.stage_index, replica.device
                    )
                    for to in place_next.replicas
                ]
            lines.append(
                StageTopics(
                    stage_index=place_here.stage_index,
                    device=replica.device,
                    subscribes=topics.input_filter(cluster, replica.device),
                    publishes=tuple(publishes),
                )
            )
    return tuple(lines)
