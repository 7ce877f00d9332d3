"""What the dashboard sends to a browser: JSON documents, with units in the names of fields.

`/api/view` answers with one :class:`ViewMessage` with its history; `/api/stream` sends one of the
same first, and then one without history each second. frontend/src/messages.ts has the same names
(a test compares).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import Field

from client.watch.condition import Condition
from contract.frozen import FrozenModel
from contract.metrics import DeviceMetrics, Ledger, PipelineMetrics
from contract.printable import PlainText
from contract.status import Event

Figures = tuple[float | None, ...]


class Level(StrEnum):
    """How much a headline matters; ``idle`` is neither good nor bad."""

    GOOD = "good"
    IDLE = "idle"
    WARNING = "warning"
    BAD = "bad"


class Headline(FrozenModel):
    """The state of the cluster in one sentence."""

    level: Level = Field(strict=False)
    text: PlainText


class DeviceMessage(FrozenModel):
    """One device. ``stage_index``: of the plan. ``metrics``: the last, whatever their age, with
    rates, utilisation and times of a batch as means of five seconds.

    ``memory_bytes`` is that of the machine; None, like ``machine`` and ``cores``, while the device
    has not said it. ``error``: why its shard could not be loaded, or why it has ended.
    """

    device: PlainText
    condition: Condition = Field(strict=False)
    stage_index: int | None
    is_fresh: bool
    metrics_age_s: float | None
    metrics: DeviceMetrics | None
    memory_bytes: int | None
    machine: PlainText | None
    cores: int | None
    error: PlainText | None


class StageMessage(FrozenModel):
    """One stage of the plan, summed up over its devices whose metrics are of now.

    ``utilisation`` and ``compute_ms`` are means over these devices (of one batch, weighted by their
    batches), ``queue_depth`` and bytes a second are sums; None where no device tells.
    ``is_bottleneck``: it computes more of the time than any other, and most of the time.
    """

    stage_index: int
    devices: tuple[PlainText, ...]
    ready_devices: int
    weight_bytes: int
    codec: PlainText
    utilisation: float | None
    compute_ms: float | None
    wait_ms: float | None
    queue_depth: int | None
    batches_per_s: float | None
    bytes_in_per_s: float | None
    bytes_out_per_s: float | None
    is_bottleneck: bool


class PlanMessage(FrozenModel):
    """The published plan, as far as a picture needs it."""

    plan_id: PlainText
    name: PlainText
    model: PlainText
    batch_size: int
    unit: Literal["images", "tokens"]
    predicted_images_per_s: float | None
    stages: tuple[StageMessage, ...]


class PipelineMessage(FrozenModel):
    """The pipeline as one client sees it. ``is_fresh``: it feeds now. Rates are means of five s."""

    client: PlainText
    is_fresh: bool
    metrics_age_s: float
    metrics: PipelineMetrics


class BrokerMessage(FrozenModel):
    """What Mosquitto says of itself, each 10 s by default; None where it has not said it.

    Rates are over the time between its last two words; ``messages_dropped`` since its start.
    """

    uptime_s: int | None
    clients_connected: int | None
    messages_dropped: int | None
    bytes_received_per_s: float | None
    bytes_sent_per_s: float | None


class Sample(FrozenModel):
    """One second of the charts: sums over what is of now, of latencies the slowest client's.

    ``bytes_in_per_s`` and ``bytes_out_per_s`` are those of all devices.
    """

    time_unix_s: float
    images_per_s: float | None
    tokens_per_s: float | None
    first_token_ms: float | None
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    latency_ms_p99: float | None
    bytes_in_per_s: float | None
    bytes_out_per_s: float | None


class History(FrozenModel):
    """Samples of the last three minutes, oldest first, as columns of one length.

    ``utilisation`` has a column for each device. None: it was not known in that second.
    """

    time_unix_s: tuple[float, ...]
    images_per_s: Figures
    tokens_per_s: Figures
    first_token_ms: Figures
    latency_ms_p50: Figures
    latency_ms_p95: Figures
    latency_ms_p99: Figures
    bytes_in_per_s: Figures
    bytes_out_per_s: Figures
    utilisation: Mapping[str, Figures]


class ViewMessage(FrozenModel):
    """Everything that the page shows.

    ``is_connected``: whether the dashboard hears the broker, since ``connection_age_s``; if not,
    all else is what was last heard. ``advice``: what bounds throughput now and what would help, one
    sentence each; None where nobody explains it. ``ledger``: summed up over all clients that were
    heard. ``ignored``: messages that were none of ours or malformed. ``history``: only in a first
    message.
    """

    format_version: Literal[1] = 1
    time_unix_s: float
    cluster: PlainText
    is_connected: bool
    connection_age_s: float
    headline: Headline
    plan: PlanMessage | None
    devices: tuple[DeviceMessage, ...]
    pipelines: tuple[PipelineMessage, ...]
    ledger: Ledger | None
    events: tuple[Event, ...]
    broker: BrokerMessage
    advice: tuple[PlainText, ...] | None
    ignored: int
    sample: Sample
    history: History | None = None
