"""What is to be decided, as numbers: segments, devices, links. Pure data, no message and no model.

All times are ms for one batch, all sizes bytes for one batch (weights: once), all rates bytes a
second. Segments are numbered from 0; edge ``e`` lies before segment ``e``: edge 0 carries the
inputs, edge ``num_segments`` the results.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Link:
    """A device's way to the broker, full duplex. ``latency_ms`` is one way."""

    up_bytes_per_s: float = math.inf
    down_bytes_per_s: float = math.inf
    latency_ms: float = 0.0

    def up_ms(self, size_bytes: float) -> float:
        """Time on the wire from the device to the broker, without the latency."""
        return size_bytes / self.up_bytes_per_s * 1e3

    def down_ms(self, size_bytes: float) -> float:
        """Time on the wire from the broker to the device, without the latency."""
        return size_bytes / self.down_bytes_per_s * 1e3


@dataclass(frozen=True, slots=True)
class RelayCosts:
    """Processor time for messages: so much each, and so much a byte, received and sent."""

    message_ms: float
    byte_ms: float


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """A device as the planner sees it.

    ``segment_ms`` with weights prepacked, ``unpacked_ms`` without (None: it was not measured, and
    prepacking is not given up). ``memory_bytes`` is what the stage's process may use, None for no
    limit; ``base_bytes`` what it takes before any weight. ``packing_factor``: bytes of memory for a
    byte of weights when prepacked. ``cut_byte_ms`` is what a cut costs the engine at each of its
    two ends, for each byte of the activation: what cannot be fused, a layout changed back. Devices
    that are equal in all but their name are of one kind.
    """

    name: str
    segment_ms: tuple[float, ...]
    relay: RelayCosts
    link: Link = Link()
    memory_bytes: int | None = None
    base_bytes: int = 80 * MB
    packing_factor: float = 2.0
    unpacked_ms: tuple[float, ...] | None = None
    cut_byte_ms: float = 0.0

    def same_kind(self, other: "DeviceCosts") -> bool:
        """Whether the two can take each other's place."""
        return replace(self, name="") == replace(other, name="")


@dataclass(frozen=True, slots=True)
class BrokerCosts:
    """The broker's host as one shared link.

    Every activation crosses its network card in and out, inputs and results too; both directions
    carry the same bytes, so the slower one counts.
    """

    bytes_per_s: float = math.inf
    relay: RelayCosts = RelayCosts(0.0, 0.0)

    def edge_ms(self, size_bytes: float) -> float:
        """How long one message of this size keeps the broker from others."""
        processor = self.relay.message_ms + self.relay.byte_ms * size_bytes
        return max(size_bytes / self.bytes_per_s * 1e3, processor)


@dataclass(frozen=True, slots=True)
class ClientCosts:
    """Whoever feeds: it sends every input and receives every result."""

    relay: RelayCosts = RelayCosts(0.0, 0.0)
    link: Link = Link()


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything that a decision needs.

    ``edge_bytes`` has one entry more than there are segments. ``activation_bytes`` is, for each
    segment, the most that its tensors take at once. ``window_batches`` is how many inputs and
    outputs a stage has in hand at most, 0 for no bound. ``edge_work_bytes``: as how many bytes an
    edge counts for the processors at its two ends; more than travel where a codec has to be
    applied, and None where none is. ``edge_cut_bytes``: what the engines at its two ends have to
    write and read if a cut is there, whatever the codec; None where that is what travels.
    ``state_bytes``: what each segment keeps between batches, whatever the engine does with weights:
    a language model's caches, and ``state_words`` says of what. ``unit`` is what a batch has.
    ``shared_bytes``: what the first segment's weights and the last one's have in common, as tied
    embeddings are: a stage of all segments has it once. ``batches_in_flight``: how many there can
    be at once, however large a window is; each comes
    again when it is through, without the client. None where the client feeds as many as it likes.
    """

    devices: tuple[DeviceCosts, ...]
    weight_bytes: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    edge_bytes: tuple[int, ...]
    batch_size: int = 1
    broker: BrokerCosts = field(default_factory=BrokerCosts)
    client: ClientCosts = field(default_factory=ClientCosts)
    window_batches: int = 3
    edge_work_bytes: tuple[int, ...] | None = None
    edge_cut_bytes: tuple[int, ...] | None = None
    state_bytes: tuple[int, ...] | None = None
    state_words: str = ""
    unit: Literal["image", "token"] = "image"
    batches_in_flight: int | None = None
    shared_bytes: int = 0

    @property
    def num_segments(self) -> int:
        """How many segments there are to share out."""
        return len(self.weight_bytes)

    def possible_window(self, window: int) -> int:
        """So many batches in flight, or as many as there can be."""
        return window if self.batches_in_flight is None else min(window, self.batches_in_flight)

    def weights(self, first: int, end: int) -> int:
        """Bytes of the weights of a stage of segments ``first`` to ``end``."""
        whole = first == 0 and end == self.num_segments
        return sum(self.weight_bytes[first:end]) - (self.shared_bytes if whole else 0)

    def state(self, first: int, end: int) -> int:
        """Bytes that segments ``first`` to ``end`` keep between batches."""
        return sum(self.state_bytes[first:end]) if self.state_bytes else 0

    def work_bytes(self, edge: int) -> int:
        """Bytes that the processors at both ends of an edge have to handle."""
        return (self.edge_work_bytes or self.edge_bytes)[edge]

    def cut_bytes(self, edge: int) -> int:
        """Bytes that engines write and read for a cut at this edge: none for inputs and results."""
        inner = 0 < edge < self.num_segments
        return (self.edge_cut_bytes or self.edge_bytes)[edge] if inner else 0

    def device(self, name: str) -> DeviceCosts:
        """A device by its name."""
        return next(device for device in self.devices if device.name == name)


@dataclass(frozen=True, slots=True)
class StageChoice:
    """A stage: the half-open range of segments, and who serves it."""

    first: int
    end: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Solution:
    """Stages that cover all segments in order, and a proven bound.

    ``batches_per_s`` is what :func:`planner.cost_model.batches_per_s` says of the stages;
    ``bound_batches_per_s`` is at least what any solution of the same kind can reach, and equals it
    for an optimal one. For the objective «latency» the two are ``latency_ms`` and its lower bound.
    """

    stages: tuple[StageChoice, ...]
    value: float
    bound: float

    @property
    def is_optimal(self) -> bool:
        """Whether nothing better can exist, to the accuracy of floating point."""
        return math.isclose(self.value, self.bound, rel_tol=1e-9)
