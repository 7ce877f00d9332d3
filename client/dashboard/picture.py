"""From a :class:`ClusterView` to what a browser is sent. Pure."""

from collections.abc import Iterable, Mapping

from client.dashboard import means
from client.dashboard.headline import headline
from client.dashboard.messages import (
    BrokerMessage,
    DeviceMessage,
    PipelineMessage,
    PlanMessage,
    Sample,
    StageMessage,
    ViewMessage,
)
from client.watch.condition import Condition, condition_of, is_fresh
from client.watch.view import STALE_AFTER_S, BrokerView, ClusterView, DeviceView
from contract.metrics import Ledger
from contract.plan import Plan, StageSpec
from contract.status import Event

EVENTS_SENT = 50
DETAIL_SENT = 300
"""Characters of an event's sentence: each of them is sent each second."""
MAX_SUM = 2**63 - 1
"""What a ledger can hold: two clients may each claim as much."""
BOTTLENECK_UTILISATION = 0.5
"""A stage that computes less of the time than this holds nobody up."""


def picture_of(
    view: ClusterView,
    time_unix_s: float,
    advice: tuple[str, ...] | None,
) -> ViewMessage:
    """The message of one moment, without history.

    Args:
        view: what is known.
        time_unix_s: now.
        advice: what bounds throughput, None where nobody explains it.
    """
    devices = {device.device: device for device in _devices(view)}
    stages = () if view.plan is None else _stages(view.plan, devices)
    ledger = _sum_of(pipeline.metrics.ledger for pipeline in view.pipelines)
    return ViewMessage(
        time_unix_s=time_unix_s,
        cluster=view.cluster,
        is_connected=view.is_connected,
        connection_age_s=view.connection_age_s,
        headline=headline(view, stages, devices, ledger),
        plan=None if view.plan is None else _plan(view.plan, stages),
        devices=tuple(devices.values()),
        pipelines=tuple(
            PipelineMessage(
                client=pipeline.client,
                is_fresh=is_fresh(view, pipeline.metrics_age_s),
                metrics_age_s=pipeline.metrics_age_s,
                metrics=means.of_pipeline(pipeline.history),
            )
            for pipeline in view.pipelines
        ),
        ledger=ledger,
        events=tuple(_shortened(event) for event in view.events[-EVENTS_SENT:]),
        broker=_broker(view.broker),
        advice=advice,
        ignored=view.ignored,
        sample=sample_of(view, time_unix_s),
    )


def sample_of(view: ClusterView, time_unix_s: float) -> Sample:
    """The second that ends now; nothing of it is known while the broker is away."""
    told = [means.of_device(device.history) for device in view.devices if _is_of_now(device)]
    devices = [metrics for metrics in told if metrics is not None]
    feeding = [
        means.of_pipeline(p.history) for p in view.pipelines if p.metrics_age_s <= STALE_AFTER_S
    ]
    known = view.is_connected
    return Sample(
        time_unix_s=time_unix_s,
        images_per_s=sum(p.images_per_s for p in feeding) if known else None,
        tokens_per_s=sum(p.tokens_per_s or 0.0 for p in feeding) if known else None,
        first_token_ms=_largest(p.first_token_ms for p in feeding) if known else None,
        latency_ms_p50=_largest(p.latency_ms_p50 for p in feeding) if known else None,
        latency_ms_p95=_largest(p.latency_ms_p95 for p in feeding) if known else None,
        latency_ms_p99=_largest(p.latency_ms_p99 for p in feeding) if known else None,
        bytes_in_per_s=sum(d.bytes_in_per_s for d in devices) if known else None,
        bytes_out_per_s=sum(d.bytes_out_per_s for d in devices) if known else None,
    )


def _broker(broker: BrokerView) -> BrokerMessage:
    return BrokerMessage(
        uptime_s=broker.uptime_s,
        clients_connected=broker.clients_connected,
        messages_dropped=broker.messages_dropped,
        bytes_received_per_s=broker.bytes_received_per_s,
        bytes_sent_per_s=broker.bytes_sent_per_s,
    )


def _is_of_now(device: DeviceView) -> bool:
    return device.metrics_age_s is not None and device.metrics_age_s <= STALE_AFTER_S


def _devices(view: ClusterView) -> list[DeviceMessage]:
    """Those that were heard, and those that only the plan names; by stage, then by name."""
    found = [_device(view, device) for device in view.devices]
    heard = {device.device for device in found}
    for place in view.plan.placement if view.plan is not None else ():
        found += [
            DeviceMessage(
                device=replica.device,
                condition=condition_of(None, view.plan, fresh=False),
                stage_index=place.stage_index,
                is_fresh=False,
                metrics_age_s=None,
                metrics=None,
                memory_bytes=None,
                machine=None,
                cores=None,
                error=None,
            )
            for replica in place.replicas
            if replica.device not in heard
        ]
    last = len(view.plan.stages) if view.plan is not None else 0
    return sorted(found, key=lambda d: (last if d.stage_index is None else d.stage_index, d.device))


def _device(view: ClusterView, device: DeviceView) -> DeviceMessage:
    spec = None if view.plan is None else view.plan.stage_of(device.name)
    fresh = is_fresh(view, device.metrics_age_s)
    status = device.status
    capabilities = None if status is None else status.capabilities
    return DeviceMessage(
        device=device.name,
        condition=condition_of(device, view.plan, fresh=fresh),
        stage_index=None if spec is None else spec.stage_index,
        is_fresh=fresh,
        metrics_age_s=device.metrics_age_s,
        metrics=means.of_device(device.history),
        memory_bytes=None if capabilities is None else capabilities.memory_bytes,
        machine=None if capabilities is None else capabilities.machine,
        cores=None if capabilities is None else capabilities.cores,
        error=None if status is None else status.error,
    )


def _plan(plan: Plan, stages: tuple[StageMessage, ...]) -> PlanMessage:
    return PlanMessage(
        plan_id=plan.plan_id,
        name=plan.name,
        model=plan.model.name,
        batch_size=plan.batch_size,
        unit="images" if plan.decoding is None else "tokens",
        predicted_images_per_s=None if plan.prediction is None else plan.prediction.images_per_s,
        stages=stages,
    )


def _stages(plan: Plan, devices: Mapping[str, DeviceMessage]) -> tuple[StageMessage, ...]:
    stages = [_stage(plan, spec, devices) for spec in plan.stages]
    busiest = max(stages, key=lambda stage: stage.utilisation or 0.0)
    if (busiest.utilisation or 0.0) < BOTTLENECK_UTILISATION or len(stages) == 1:
        return tuple(stages)
    stages[busiest.stage_index] = busiest.model_copy(update={"is_bottleneck": True})
    return tuple(stages)


def _stage(plan: Plan, spec: StageSpec, devices: Mapping[str, DeviceMessage]) -> StageMessage:
    placed = plan.placement[spec.stage_index].replicas if plan.placement else ()
    its = [devices[replica.device] for replica in placed]
    told = [
        device.metrics
        for device in its
        if device.is_fresh and device.metrics and device.condition is Condition.READY
    ]
    return StageMessage(
        stage_index=spec.stage_index,
        devices=tuple(device.device for device in its),
        ready_devices=sum(device.condition is Condition.READY for device in its),
        weight_bytes=spec.weight_bytes,
        codec=plan.codec_of_edge(spec.stage_index + 1),
        utilisation=sum(m.utilisation for m in told) / len(told) if told else None,
        compute_ms=means.per_batch([(m.batches_per_s, m.compute_ms_mean) for m in told]),
        wait_ms=means.per_batch([(m.batches_per_s, m.wait_ms_mean) for m in told]),
        queue_depth=sum(m.queue_depth for m in told) if told else None,
        batches_per_s=sum(m.batches_per_s for m in told) if told else None,
        bytes_in_per_s=sum(m.bytes_in_per_s for m in told) if told else None,
        bytes_out_per_s=sum(m.bytes_out_per_s for m in told) if told else None,
        is_bottleneck=False,
    )


def _sum_of(ledgers: Iterable[Ledger]) -> Ledger | None:
    every = list(ledgers)
    if not every:
        return None
    sums = {name: sum(getattr(one, name) for one in every) for name in Ledger.model_fields}
    return Ledger(**{name: max(-MAX_SUM, min(MAX_SUM, total)) for name, total in sums.items()})


def _largest(figures: Iterable[float | None]) -> float | None:
    return max((figure for figure in figures if figure is not None), default=None)


def _shortened(event: Event) -> Event:
    if len(event.detail) <= DETAIL_SENT:
        return event
    return event.model_copy(update={"detail": event.detail[: DETAIL_SENT - 1] + "…"})
