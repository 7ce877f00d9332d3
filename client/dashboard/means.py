"""Means of the last seconds: one second of a Pi holds one batch or none, and figures would flicker.

Pure.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import TypeVar

from contract.metrics import DeviceMetrics, PipelineMetrics

Metrics = TypeVar("Metrics", DeviceMetrics, PipelineMetrics)
MEAN_OVER_S = 5.0
_DEVICE_RATES = (
    "batches_per_s",
    "images_per_s",
    "bytes_in_per_s",
    "bytes_out_per_s",
    "utilisation",
    "cpu_percent",
)
_PIPELINE_RATES = ("batches_per_s", "images_per_s", "tokens_per_s")


def of_device(history: Sequence[DeviceMetrics]) -> DeviceMetrics | None:
    """The last metrics, with rates and times of a batch as means; None without any."""
    if not history:
        return None
    recent = _recent(history)
    means: dict[str, float | None] = {
        name: fmean(getattr(metrics, name) for metrics in recent) for name in _DEVICE_RATES
    }
    for name in ("compute_ms_mean", "wait_ms_mean"):
        means[name] = per_batch([(m.batches_per_s, getattr(m, name)) for m in recent])
    return history[-1].model_copy(update=means)


def of_pipeline(history: Sequence[PipelineMetrics]) -> PipelineMetrics:
    """The last metrics, with rates as means. ``history`` is never empty."""
    recent = _recent(history)
    known = {name: [getattr(metrics, name) for metrics in recent] for name in _PIPELINE_RATES}
    means = {name: fmean(values) for name, values in known.items() if None not in values}
    return history[-1].model_copy(update=means)


def per_batch(weighed: Sequence[tuple[float, float | None]]) -> float | None:
    """The mean over batches of ``(batches a second, their mean in ms)``; None without batches."""
    known = [(weight, mean) for weight, mean in weighed if mean is not None and weight > 0]
    weight = sum(weight for weight, _ in known)
    return sum(weight * mean for weight, mean in known) / weight if known else None


def _recent(history: Sequence[Metrics]) -> list[Metrics]:
    """Those of the last seconds by the sender's clock, the last one in any case."""
    last = history[-1].time_unix_s
    recent = [m for m in history[-8:-1] if 0 <= last - m.time_unix_s < MEAN_OVER_S - 0.5]
    recent.append(history[-1])
    return recent
