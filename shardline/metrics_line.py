"""One line a second for people: what the pipeline does now. Pure."""

from client.watch.view import ClusterView, DeviceView, PipelineView
from shardline.figures import ms, percent, rate

SHOWN = 6
"""Devices, and clients, that a line has place for."""


def line_of(view: ClusterView, clock: str) -> str:
    """``clock`` and what is known now: who feeds, how fast, and how busy the devices are."""
    if not view.is_connected:
        return f"{clock}  no connection to the broker for {view.connection_age_s:.0f} s"
    fed = [_pipeline(pipeline) for pipeline in view.pipelines if pipeline.is_fresh]
    parts = fed[:SHOWN] or ["nobody feeds the pipeline"]
    devices = [_device(device) for device in view.devices]
    if devices:
        more = len(devices) - SHOWN
        listed = "  ".join(devices[:SHOWN])
        parts.append(listed if more <= 0 else f"{listed}  and {more} more")
    else:
        parts.append("no device is seen")
    return f"{clock}  " + "  |  ".join(parts)


def _pipeline(pipeline: PipelineView) -> str:
    metrics, ledger = pipeline.metrics, pipeline.metrics.ledger
    if metrics.tokens_per_s is not None:
        return (
            f"{pipeline.client} {rate(metrics.tokens_per_s)} tokens/s  "
            f"first token {ms(metrics.first_token_ms)}  "
            f"{ledger.in_flight} in flight  {ledger.lost} lost"
        )
    return (
        f"{pipeline.client} {rate(metrics.images_per_s)} images/s  "
        f"p50 {ms(metrics.latency_ms_p50)}  p95 {ms(metrics.latency_ms_p95)}  "
        f"{ledger.in_flight} in flight  {ledger.lost} lost"
    )


def _device(device: DeviceView) -> str:
    metrics = device.metrics
    if device.status is not None and not device.is_online:
        return f"{device.name} {device.status.state}"
    if metrics is None or not device.is_fresh:
        return f"{device.name} silent"
    place = "" if metrics.stage_index is None else f" stage {metrics.stage_index}"
    return f"{device.name}{place} {percent(metrics.utilisation)}"
