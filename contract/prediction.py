"""What a plan is expected to do, what the alternatives would do, and what it did when it ran.

Times in ms for one batch, rates in images a second, unless a name says otherwise. A prediction says
what it rests on; a measurement says when it was taken.
"""

from typing import Literal

from pydantic import Field

from contract.frozen import FrozenModel

MAX_WINDOW = 65_536
"""Batches in flight: what a client holds in memory by the word of a plan has a bound."""
Strategy = Literal["single", "replicas", "pipeline", "mixed"]
"""One device; the whole model on several; one device for each stage; several for some stages."""


class DevicePrediction(FrozenModel):
    """One device at the predicted rate.

    ``share`` is its part of the batches, ``compute_ms`` what its engine takes for one, ``relay_ms``
    the processor's work to receive and send it, ``transfer_ms`` the time of the busier direction of
    its link. ``utilisation`` is that of its processor or its link, whichever is busier. Memory is
    that of its process at most; the limit is None where nothing limits it.
    """

    device: str
    stage_index: int = Field(ge=0)
    share: float = Field(gt=0, le=1)
    compute_ms: float = Field(ge=0)
    relay_ms: float = Field(ge=0)
    transfer_ms: float = Field(ge=0)
    utilisation: float = Field(ge=0)
    memory_bytes: int = Field(ge=0)
    memory_limit_bytes: int | None = Field(default=None, ge=0)
    prepack: bool = True


class EdgePrediction(FrozenModel):
    """What crosses the broker: edge ``k`` carries the inputs of stage ``k``, the last the results.

    ``transfer_ms`` is the time of one batch from sender to receiver on idle links.
    """

    edge: int = Field(ge=0)
    codec: str
    bytes_per_batch: int = Field(ge=0)
    transfer_ms: float = Field(ge=0)
    broker_ms: float = Field(ge=0)


class Prediction(FrozenModel):
    """A plan's expected rate, latency and memory.

    ``latency_ms`` is that of one batch alone, ``loaded_latency_ms`` the median with ``window``
    batches in flight. ``bound_images_per_s`` is a proven upper bound of what any plan of the same
    kind could reach by the same figures: ``gap`` is 0 for an optimal one.
    """

    images_per_s: float = Field(gt=0)
    latency_ms: float = Field(ge=0)
    loaded_latency_ms: float = Field(ge=0)
    window: int = Field(gt=0, le=MAX_WINDOW)
    bottleneck: str
    bound_images_per_s: float = Field(gt=0)
    broker_bytes_per_image: float = Field(ge=0)
    devices: tuple[DevicePrediction, ...] = Field(min_length=1)
    edges: tuple[EdgePrediction, ...] = Field(min_length=2)
    based_on: str

    @property
    def gap(self) -> float:
        """How far, as a share of the bound, the rate stays below it; 0.0 when it is optimal."""
        return max(0.0, 1.0 - self.images_per_s / self.bound_images_per_s)

    @property
    def largest_memory_bytes(self) -> int:
        """Of the device that needs most."""
        return max(device.memory_bytes for device in self.devices)


class Alternative(FrozenModel):
    """One way to use the devices: what it would do, or why it cannot be done."""

    strategy: Strategy
    prediction: Prediction | None = None
    problem: str | None = None


class Verdict(FrozenModel):
    """The alternatives side by side. ``recommended`` is one of them, and ``reason`` says why."""

    alternatives: tuple[Alternative, ...] = Field(min_length=1)
    recommended: Strategy
    chosen: Strategy
    reason: str

    def of(self, strategy: Strategy) -> Alternative | None:
        """The alternative of a strategy, if it was looked at."""
        return next((a for a in self.alternatives if a.strategy == strategy), None)


class SegmentCosts(FrozenModel):
    """One segment as the plan saw it; ``cut`` is the tensor at its end, empty after the last.

    ``ms`` is on the reference device of the plan (its fastest), bytes are of one batch.
    """

    cut: str
    ms: float = Field(ge=0)
    weight_bytes: int = Field(ge=0)
    output_bytes: int = Field(ge=0)


class DeviceMeasurement(FrozenModel):
    """One device while the plan ran: medians over its batches."""

    device: str
    stage_index: int = Field(ge=0)
    batches: int = Field(ge=0)
    compute_ms: float | None = Field(default=None, ge=0)
    utilisation: float | None = Field(default=None, ge=0)
    rss_bytes: int | None = Field(default=None, ge=0)


class EdgeMeasurement(FrozenModel):
    """One edge while a single batch at a time ran: median ms from sent to received."""

    edge: int = Field(ge=0)
    bytes_per_batch: int = Field(ge=0)
    transfer_ms: float | None = None


class Measurement(FrozenModel):
    """What a plan did: `shardline verify`."""

    time_unix_s: float
    batches: int = Field(gt=0)
    window: int = Field(gt=0)
    images_per_s: float = Field(gt=0)
    latency_ms: float = Field(ge=0)
    loaded_latency_ms: float = Field(ge=0)
    devices: tuple[DeviceMeasurement, ...]
    edges: tuple[EdgeMeasurement, ...]
