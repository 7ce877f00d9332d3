"""One moment of a cluster, as its messages tell: what every view is drawn from.

Immutable, so that a view can be handed to another thread; made by :mod:`client.watch.state`.
Ages are in seconds since the message was heard, by this process' own clock: the clocks of devices
differ.
"""

from dataclasses import dataclass

from contract.metrics import DeviceMetrics, PipelineMetrics
from contract.plan import Plan
from contract.status import DeviceState, DeviceStatus, Event
from contract.trace import BatchTrace, ClockOffset

STALE_AFTER_S = 5.0
"""Metrics come once a second: five that are missing mean that nobody sends them."""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device. ``history`` holds its metrics, oldest first; what it last said is the last."""

    name: str
    status: DeviceStatus | None
    history: tuple[DeviceMetrics, ...]
    metrics_age_s: float | None

    @property
    def metrics(self) -> DeviceMetrics | None:
        """The last metrics, None while none came."""
        return self.history[-1] if self.history else None

    @property
    def is_online(self) -> bool:
        """Whether the broker holds the device's birth message, not its will."""
        return self.status is not None and self.status.state is DeviceState.ONLINE

    @property
    def is_fresh(self) -> bool:
        """Whether its metrics are of now."""
        return self.metrics_age_s is not None and self.metrics_age_s <= STALE_AFTER_S


@dataclass(frozen=True, slots=True)
class PipelineView:
    """The pipeline as one client sees it. ``history``: its metrics, oldest first, never empty."""

    client: str
    history: tuple[PipelineMetrics, ...]
    metrics_age_s: float
    clocks: tuple[ClockOffset, ...] = ()
    traces: tuple[BatchTrace, ...] = ()

    @property
    def metrics(self) -> PipelineMetrics:
        """The last metrics."""
        return self.history[-1]

    @property
    def is_fresh(self) -> bool:
        """Whether this client feeds the pipeline now."""
        return self.metrics_age_s <= STALE_AFTER_S


@dataclass(frozen=True, slots=True)
class BrokerView:
    """What Mosquitto says of itself; None where it has not said it, or may not be read.

    Bytes and messages are totals since its start; ``dropped`` counts messages that it took and did
    not keep. Rates are over its last interval of 10 s, None until two were heard;
    ``messages_dropped_recently`` counts those of the last 30 s.
    """

    uptime_s: int | None = None
    bytes_received: int | None = None
    bytes_sent: int | None = None
    messages_dropped: int | None = None
    clients_connected: int | None = None
    bytes_received_per_s: float | None = None
    bytes_sent_per_s: float | None = None
    messages_dropped_recently: int = 0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything that is known now. Devices and pipelines by name, events newest last.

    ``is_connected``: whether this process hears the broker; what is shown is old where it is not.
    ``connection_age_s``: how long that has been so.
    ``ignored``: messages on these topics that were none of ours, malformed, late, or of one too
    many devices.
    """

    cluster: str
    is_connected: bool
    connection_age_s: float
    plan: Plan | None
    devices: tuple[DeviceView, ...]
    pipelines: tuple[PipelineView, ...]
    events: tuple[Event, ...]
    broker: BrokerView
    ignored: int = 0

    def device(self, name: str) -> DeviceView | None:
        """The device of this name, None where nothing was heard of it."""
        return next((device for device in self.devices if device.name == name), None)

    def stage_devices(self, stage_index: int) -> tuple[str, ...]:
        """Names of the devices that the plan gives a stage; none where it has no such stage."""
        if self.plan is None or not 0 <= stage_index < len(self.plan.placement):
            return ()
        return tuple(replica.device for replica in self.plan.placement[stage_index].replicas)
