"""The pipeline of a plan as the page shows it: what placement, prediction and measurement say of
each stage, device and edge, put together. Pure data."""

import re
from dataclasses import dataclass
from typing import Literal

from contract.plan import Plan, StageSpec
from contract.prediction import DevicePrediction
from contract.tensor_spec import TensorSpec
from shardline import figures

Bottleneck = int | Literal["broker", "client"] | None
"""The stage that sets the rate, or what else does; None where the plan does not say."""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device of a stage; ``prediction`` is None where the plan holds none for it."""

    name: str
    prediction: DevicePrediction | None

    @property
    def busy_ms(self) -> float | None:
        """Time between two batches at the device's best: of its processor or of its link."""
        if self.prediction is None:
            return None
        return max(self.processor_ms, self.prediction.transfer_ms)

    @property
    def processor_ms(self) -> float:
        """What its processor takes for a batch; 0 where there is no prediction."""
        expected = self.prediction
        return 0.0 if expected is None else expected.compute_ms + expected.relay_ms


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage and the devices that serve it, none where the plan is not placed."""

    spec: StageSpec
    devices: tuple[DeviceView, ...]
    is_bottleneck: bool

    @property
    def interval_ms(self) -> float | None:
        """Time between two batches of the stage at its best, all its replicas at work."""
        times = [device.busy_ms for device in self.devices]
        if not times or not all(times):
            return None
        return 1 / sum(1 / ms for ms in times if ms)

    @property
    def segments(self) -> str:
        """Its segments in words: ``segment 4``, ``segments 4 to 9``."""
        first, last = self.spec.first_segment, self.spec.end_segment - 1
        return f"segment {first}" if first == last else f"segments {first} to {last}"


@dataclass(frozen=True, slots=True)
class EdgeView:
    """What crosses the broker before stage ``index``, or after the last stage.

    ``size_bytes`` is of one batch as it travels; where nothing was predicted, of the tensors as
    they are. ``transfer_ms`` is None there.
    """

    index: int
    tensors: tuple[TensorSpec, ...]
    codec: str
    size_bytes: int
    transfer_ms: float | None


@dataclass(frozen=True, slots=True)
class PipelineView:
    """Everything that the drawing of a pipeline shows."""

    stages: tuple[StageView, ...]
    edges: tuple[EdgeView, ...]
    bottleneck: Bottleneck
    broker_bytes_per_image: float | None

    @property
    def longest_ms(self) -> float:
        """The longest time that any device takes for a batch; 0 where nothing was predicted."""
        return max((d.busy_ms or 0.0 for s in self.stages for d in s.devices), default=0.0)

    @property
    def largest_bytes(self) -> int:
        """Of the edge that carries most; at least 1."""
        return max(1, *(edge.size_bytes for edge in self.edges))


def view_pipeline(plan: Plan) -> PipelineView:
    """Put together what a plan says of its stages, devices and edges."""
    expected = plan.prediction
    bottleneck = None if expected is None else read_bottleneck(expected.bottleneck)
    stages = tuple(
        StageView(
            spec=spec,
            devices=_devices_of(plan, spec.stage_index),
            is_bottleneck=bottleneck == spec.stage_index,
        )
        for spec in plan.stages
    )
    return PipelineView(
        stages=stages,
        edges=tuple(_edge(plan, index) for index in range(plan.num_stages + 1)),
        bottleneck=bottleneck,
        broker_bytes_per_image=None if expected is None else expected.broker_bytes_per_image,
    )


def read_bottleneck(words: str) -> Bottleneck:
    """What a prediction's ``bottleneck`` names: ``stage 1 on pi-1`` is 1."""
    stage = re.match(r"stage (\d+)\b", words)
    if stage:
        return int(stage[1])
    return "broker" if "broker" in words else "client" if "client" in words else None


def others_than_predicted(plan: Plan) -> bool:
    """Whether the plan is placed on other devices than its prediction is for."""
    if plan.prediction is None or not plan.placement:
        return False
    placed = {(p.stage_index, r.device) for p in plan.placement for r in p.replicas}
    return placed != {(d.stage_index, d.device) for d in plan.prediction.devices}


def _devices_of(plan: Plan, stage_index: int) -> tuple[DeviceView, ...]:
    found = () if plan.prediction is None else plan.prediction.devices
    expected = {d.device: d for d in found if d.stage_index == stage_index}
    names = [
        replica.device
        for place in plan.placement
        if place.stage_index == stage_index
        for replica in place.replicas
    ]
    return tuple(DeviceView(name, expected.get(name)) for name in names or expected)


def _edge(plan: Plan, index: int) -> EdgeView:
    tensors = plan.stages[0].inputs if index == 0 else plan.stages[index - 1].outputs
    found = () if plan.prediction is None else plan.prediction.edges
    for edge in found:
        if edge.edge == index:
            return EdgeView(
                index,
                tensors,
                figures.codec_word(edge.codec, tensors),
                edge.bytes_per_batch,
                edge.transfer_ms,
            )
    codec = "float32" if index == 0 else plan.stages[index - 1].codec
    words = figures.codec_word(codec, tensors)
    size_bytes = plan.batch_size * sum(spec.bytes_per_image for spec in tensors)
    return EdgeView(
        index, tensors, words if codec == "float32" else f"before {words}", size_bytes, None
    )
