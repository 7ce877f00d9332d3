"""Takes the messages of a cluster in and keeps what a view needs of them: bounded, whoever sends.

Pure but for the clock that is handed in. Nothing here trusts a message: what is malformed, speaks
for somebody else, or is of one device too many is counted and left. Nor is anything believed for
ever: while the connection was lost, a device may have gone and a plan been retired without a word
to us. So what was known before is hearsay when the connection is back, and is forgotten if nobody
speaks of it again.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import ValidationError

from broker.transport import Delivery
from client.watch.kept import BROKER_TOPICS, BrokerCounters, Kept
from client.watch.view import ClusterView, DeviceView, PipelineView
from contract import topics
from contract.errors import PlanError, WireFormatError
from contract.metrics import DeviceMetrics, PipelineMetrics
from contract.plan import Plan, parse_plan
from contract.status import DeviceState, DeviceStatus, Event, parse_status
from contract.trace import BatchTrace, ClockOffset, TraceMetrics

MAX_DEVICES = 256
MAX_CLIENTS = 64
HISTORY = 180
"""Messages kept of each sender: three minutes."""
KEPT_BYTES = 256 * 1024
"""Of those messages as they came: a device's three minutes are 130 KB."""
EVENTS_KEPT = 200
TRACES_KEPT = 256
MAX_METRICS_BYTES = 64 * 1024
MAX_EVENT_BYTES = 16 * 1024
MAX_TRACE_BYTES = 256 * 1024
CONFIRM_WITHIN_S = 10.0
"""Devices and clients come back to a broker within 5 s and then publish once a second."""
FORGET_AFTER_S = 600.0
"""Clients, and whoever sends metrics without a status, leave no word when they go."""


@dataclass(slots=True)
class _Device:
    status: DeviceStatus | None = None
    history: Kept[DeviceMetrics] = field(default_factory=lambda: Kept(HISTORY, KEPT_BYTES))
    heard_at: float | None = None
    connection: int = 0  # the latest on which it was spoken of


@dataclass(slots=True)
class _Client:
    heard_at: float
    history: Kept[PipelineMetrics] = field(default_factory=lambda: Kept(HISTORY, KEPT_BYTES))
    clocks: tuple[ClockOffset, ...] = ()
    traces: Kept[BatchTrace] = field(default_factory=lambda: Kept(TRACES_KEPT, KEPT_BYTES))


class ClusterState:
    """What is known of one cluster. Not thread-safe: its owner guards it."""

    def __init__(self, cluster: str, clock: Callable[[], float]) -> None:
        """``clock``: monotonic seconds."""
        self._cluster, self._clock = cluster, clock
        self._devices: dict[str, _Device] = {}
        self._clients: dict[str, _Client] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._plan: Plan | None = None
        self._plan_connection = 0
        self._broker = BrokerCounters()
        self._is_connected, self._since, self._connection = False, clock(), 0
        self._ignored = 0

    def set_connected(self, is_connected: bool) -> None:
        """The connection to the broker came or went."""
        if is_connected == self._is_connected:
            return
        self._is_connected, self._since = is_connected, self._clock()
        if is_connected:
            self._connection += 1
            self._broker = BrokerCounters()

    def take(self, delivery: Delivery) -> bool:
        """Take one message in; whether it told anything."""
        try:
            told = self._take(delivery)
        except (WireFormatError, PlanError, ValidationError, ValueError):
            told = False
        if not told:
            self._ignored += 1
        return told

    def _take(self, delivery: Delivery) -> bool:
        payload, retained = delivery.payload, delivery.retained
        if delivery.topic in BROKER_TOPICS:
            now = self._clock()
            return self._broker.take(delivery.topic, payload, retained=retained, now=now)
        topic = topics.parse_topic(delivery.topic)
        if topic.cluster != self._cluster:
            return False
        sender = topic.sender or ""
        if topic.kind == "plan":
            self._plan = parse_plan(payload, delivery.topic) if payload else None
            self._plan_connection = self._connection
            return True
        if topic.kind == "status":
            return self._take_status(sender, payload, retained)
        if retained:  # of any age, where what counts is what is said now
            return False
        match topic.kind:
            case "metrics":
                return self._take_metrics(sender, payload)
            case "pipeline_metrics":
                return self._take_pipeline(sender, payload)
            case "trace":
                return self._take_trace(sender, payload)
            case "event":
                return self._take_event(sender, payload)
        return False

    def _device(self, name: str) -> _Device | None:
        if name not in self._devices and len(self._devices) >= MAX_DEVICES:
            unknown = [known for known, its in self._devices.items() if its.status is None]
            if not unknown:
                return None
            del self._devices[min(unknown, key=lambda known: self._devices[known].heard_at or 0)]
        device = self._devices.setdefault(name, _Device())
        device.connection = self._connection
        return device

    def _client(self, name: str) -> _Client:
        if name not in self._clients and len(self._clients) >= MAX_CLIENTS:
            oldest = min(self._clients, key=lambda known: self._clients[known].heard_at)
            del self._clients[oldest]  # clients come and go, devices stay
        client = self._clients.setdefault(name, _Client(self._clock()))
        client.heard_at = self._clock()
        return client

    def _take_status(self, name: str, payload: bytes, retained: bool) -> bool:
        if not payload:  # somebody cleared what was retained: the device is no more
            self._devices.pop(name, None)
            return True
        status = parse_status(payload, name)
        known = self._devices.get(name)
        if known is not None and not retained and _is_late(status, known.status):
            return False
        device = self._device(name)
        if device is None:
            return False
        device.status = status
        return True

    def _take_metrics(self, name: str, payload: bytes) -> bool:
        if len(payload) > MAX_METRICS_BYTES:
            return False
        metrics = DeviceMetrics.model_validate_json(payload)
        device = self._device(name) if metrics.device == name else None
        if device is None:
            return False
        device.history.add(metrics, len(payload))
        device.heard_at = self._clock()
        self._confirm_plan(metrics.plan_id)
        return True

    def _take_pipeline(self, name: str, payload: bytes) -> bool:
        if len(payload) > MAX_METRICS_BYTES:
            return False
        metrics = PipelineMetrics.model_validate_json(payload)
        if metrics.client != name:
            return False
        self._client(name).history.add(metrics, len(payload))
        self._confirm_plan(metrics.plan_id)
        return True

    def _confirm_plan(self, plan_id: str | None) -> None:
        """A broker that kept nothing has lost the plan, and those who run it go on with it."""
        if self._plan is not None and self._plan.plan_id == plan_id:
            self._plan_connection = self._connection

    def _take_trace(self, name: str, payload: bytes) -> bool:
        if len(payload) > MAX_TRACE_BYTES:
            return False
        trace = TraceMetrics.model_validate_json(payload)
        if trace.client != name:
            return False
        client = self._client(name)
        client.clocks = trace.clocks
        for batch in trace.batches:
            client.traces.add(batch, len(payload) // len(trace.batches))
        return True

    def _take_event(self, name: str, payload: bytes) -> bool:
        if len(payload) > MAX_EVENT_BYTES:
            return False
        event = Event.model_validate_json(payload)
        if event.sender != name:
            return False
        self._events.append(event)
        return True

    def _forget(self, now: float) -> None:
        for name, client in list(self._clients.items()):
            if now - client.heard_at > FORGET_AFTER_S:
                del self._clients[name]
        for name, device in list(self._devices.items()):
            if device.status is None and now - (device.heard_at or now) > FORGET_AFTER_S:
                del self._devices[name]
        if not self._is_connected or now - self._since <= CONFIRM_WITHIN_S:
            return
        for name, device in list(self._devices.items()):
            if device.connection != self._connection:
                del self._devices[name]
        if self._plan_connection != self._connection:
            self._plan = None

    def view(self) -> ClusterView:
        """All of it, as it is now."""
        now = self._clock()
        self._forget(now)
        return ClusterView(
            cluster=self._cluster,
            is_connected=self._is_connected,
            connection_age_s=now - self._since,
            plan=self._plan,
            devices=tuple(
                DeviceView(
                    name,
                    device.status,
                    device.history.all(),
                    None if device.heard_at is None else now - device.heard_at,
                )
                for name, device in sorted(self._devices.items())
            ),
            pipelines=tuple(
                PipelineView(
                    name,
                    client.history.all(),
                    now - client.heard_at,
                    client.clocks,
                    client.traces.all(),
                )
                for name, client in sorted(self._clients.items())
                if client.history
            ),
            events=tuple(self._events),
            broker=self._broker.view(now),
            ignored=self._ignored,
        )


def _is_late(status: DeviceStatus, known: DeviceStatus | None) -> bool:
    """Whether this is the will of an earlier start, which cannot unmake a newer birth.

    For live messages only: what the broker retains is its last word, and if that is a late will,
    the device has seen it too and says that it is there.
    """
    return (
        known is not None
        and known.state is DeviceState.ONLINE
        and status.state is not DeviceState.ONLINE
        and status.boot != known.boot
    )
