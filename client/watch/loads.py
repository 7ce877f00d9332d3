"""How busy every device of the running plan is, and what its clients wait for. Pure.

Figures are means over the last seconds, since one second holds few batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from client.watch.view import ClusterView, DeviceView, PipelineView
from contract.fleet import is_live
from contract.metrics import EARLIER, DeviceMetrics
from contract.plan import Plan
from contract.prediction import DevicePrediction

AVERAGED = 5
"""Messages that a figure is the mean of: they come once a second."""
LOW_MEMORY_SHARE = 0.05
LOW_MEMORY_BYTES = 64_000_000
"""With less of its memory available a device throws out pages that it needs, weights among them."""
BELIEVED_UP_TO = 1.15
"""A predicted limit that is passed by more is not the limit."""


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """One device that serves a stage and is heard.

    ``computing``, ``processor``, ``link``, ``sending`` are shares of the time, 1.0 for all of it:
    in which it computes; of its processor that its process uses, None where it does not say how
    many cores there are; in which the busier direction of its link is taken, by the plan's
    prediction, None without one that can be true; in which an output of its is on its way to the
    broker (several at once add up). ``throttled`` are the flags that are raised now.
    """

    device: str
    stage_index: int
    computing: float
    processor: float | None
    link: float | None
    sending: float
    batches_per_s: float
    compute_ms: float | None
    publish_ms: float | None
    bytes_in_per_s: float
    bytes_out_per_s: float
    throttled: tuple[str, ...]
    memory_available_bytes: int
    is_short_of_memory: bool
    expected: DevicePrediction | None

    @property
    def busy(self) -> float:
        """The share of the time in which it can take no further batch."""
        return max(self.computing, self.processor or 0.0)


@dataclass(frozen=True, slots=True)
class Queue:
    """A stage before which batches wait, as the quickest client sees it."""

    stage_index: int
    wait_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Feeding:
    """All clients that feed the plan now, together. ``window`` and ``in_flight`` are batches.

    ``unit``: what ``per_s`` counts. Of a language model, ``window`` is what keeps every stage busy:
    a batch for each; and a batch is a text, whose latency says nothing about the way of a token:
    ``latency_ms`` and ``on_the_way_ms`` are None.

    ``queue``: the stage before which batches wait longest, if that is longer than it computes.
    """

    clients: tuple[str, ...]
    unit: Literal["images", "tokens"]
    per_s: float
    batches_per_s: float
    window: float
    in_flight: float
    latency_ms: float | None
    on_the_way_ms: float | None
    queue: Queue | None

    @property
    def fill(self) -> float:
        """How full the windows are; one batch less counts as full: its successor is on its way.

        Tokens have none: the next one follows from the last.
        """
        successors = len(self.clients) if self.unit == "images" else 0
        return min(1.0, (self.in_flight + successors) / max(self.window, 1.0))


def device_loads(view: ClusterView) -> tuple[DeviceLoad, ...]:
    """Every device of the plan that is live and heard, by stage."""
    if view.plan is None:
        return ()
    found = []
    for place in view.plan.placement:
        for replica in place.replicas:
            device = view.device(replica.device)
            if device is not None and device.is_fresh and is_live(device.status, view.plan):
                found.append(_load(view.plan, place.stage_index, device))
    return tuple(found)


def _load(plan: Plan, stage_index: int, device: DeviceView) -> DeviceLoad:
    last = device.history[-1]
    recent = [m for m in device.history[-AVERAGED:] if m.plan_id == last.plan_id]
    expected = next(
        (
            its
            for its in (plan.prediction.devices if plan.prediction else ())
            if its.device == device.name and its.stage_index == stage_index
        ),
        None,
    )
    capabilities = None if device.status is None else device.status.capabilities
    cores = capabilities.cores if capabilities else 0
    total_bytes = capabilities.memory_bytes if capabilities else 0
    batches_per_s = _mean(recent, lambda m: m.batches_per_s)
    link = None if expected is None else expected.transfer_ms * batches_per_s / 1e3
    publish_ms = _mean_of_known([m.publish_ms_mean for m in recent])
    available = last.memory_available_bytes
    return DeviceLoad(
        device=device.name,
        stage_index=stage_index,
        computing=_mean(recent, lambda m: m.utilisation),
        processor=_mean(recent, lambda m: m.cpu_percent) / 100 / cores if cores else None,
        link=link if link is not None and link <= BELIEVED_UP_TO else None,
        sending=(publish_ms or 0.0) * batches_per_s / 1e3,
        batches_per_s=batches_per_s,
        compute_ms=_mean_of_known([m.compute_ms_mean for m in recent]),
        publish_ms=publish_ms,
        bytes_in_per_s=_mean(recent, lambda m: m.bytes_in_per_s),
        bytes_out_per_s=_mean(recent, lambda m: m.bytes_out_per_s),
        throttled=tuple(flag for flag in last.throttled or () if not flag.endswith(EARLIER)),
        memory_available_bytes=available,
        is_short_of_memory=total_bytes > 0
        and available < max(LOW_MEMORY_SHARE * total_bytes, LOW_MEMORY_BYTES),
        expected=expected,
    )


def feeding(view: ClusterView) -> Feeding | None:
    """What the clients do that feed the plan now; None where there is none."""
    if view.plan is None:
        return None
    active = [
        pipeline
        for pipeline in view.pipelines
        if pipeline.is_fresh and pipeline.metrics.plan_id == view.plan.plan_id
    ]
    if not active:
        return None
    main = max(active, key=lambda pipeline: pipeline.metrics.rate)
    is_of_texts = main.metrics.unit == "tokens"
    window = sum(p.metrics.window for p in active)
    return Feeding(
        clients=tuple(pipeline.client for pipeline in active),
        unit=main.metrics.unit,
        per_s=sum(_rate(p, lambda m: m.rate) for p in active),
        batches_per_s=sum(_rate(p, lambda m: m.batches_per_s) for p in active),
        window=min(window, view.plan.num_stages) if is_of_texts else window,
        in_flight=sum(_rate(p, lambda m: m.ledger.in_flight) for p in active),
        latency_ms=None if is_of_texts else main.metrics.latency_ms_p50,
        on_the_way_ms=None if is_of_texts else _on_the_way_ms(main),
        queue=_queue(main),
    )


def _queue(pipeline: PipelineView) -> Queue | None:
    waits: dict[int, list[tuple[float, float]]] = {}
    for metrics in pipeline.history[-AVERAGED:]:
        for stage in metrics.stages:
            if stage.wait_ms_p50 is not None and stage.compute_ms_p50 is not None:
                of_stage = waits.setdefault(stage.stage_index, [])
                of_stage.append((stage.wait_ms_p50, stage.compute_ms_p50))
    found = [
        Queue(index, fmean(wait for wait, _ in times), fmean(compute for _, compute in times))
        for index, times in waits.items()
    ]
    longest = max(found, key=lambda queue: queue.wait_ms, default=None)
    return longest if longest is not None and longest.wait_ms > longest.compute_ms else None


def _rate(pipeline: PipelineView, figure: Callable[..., float]) -> float:
    return fmean(figure(metrics) for metrics in pipeline.history[-AVERAGED:])


def _on_the_way_ms(pipeline: PipelineView) -> float | None:
    """What is left of a batch's median latency beside waiting and computing at the stages."""
    metrics = pipeline.metrics
    parts = [(stage.compute_ms_p50, stage.wait_ms_p50) for stage in metrics.stages]
    if metrics.latency_ms_p50 is None or not parts:
        return None
    at_stages = 0.0
    for compute_ms, wait_ms in parts:
        if compute_ms is None or wait_ms is None:
            return None
        at_stages += compute_ms + wait_ms
    return max(0.0, metrics.latency_ms_p50 - at_stages)


def _mean(recent: Sequence[DeviceMetrics], figure: Callable[[DeviceMetrics], float]) -> float:
    return fmean(figure(metrics) for metrics in recent)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
