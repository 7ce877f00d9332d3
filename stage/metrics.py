"""Measures a device once a second: rates from the counters, load from psutil."""

import time

import psutil

from contract.metrics import DeviceMetrics
from stage.caches import CacheUsage
from stage.counters import StageCounters
from stage.machine import temperature_celsius
from stage.throttling import Throttling


class DeviceMeter:
    """Turns counters into one :class:`DeviceMetrics` for each call of :meth:`measure`."""

    def __init__(self, device: str, counters: StageCounters) -> None:
        self._device, self._counters = device, counters
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the mark
        self._throttling = Throttling()
        self._started = self._last_time = time.monotonic()
        self._last = counters.snapshot()

    def measure(
        self,
        *,
        plan_id: str | None,
        stage_index: int | None,
        shard: str,
        queue_depth: int,
        reconnects: int,
        caches: CacheUsage | None = None,
    ) -> DeviceMetrics:
        """Rates and means cover the time since the last call. ``caches``: of a language model."""
        now, totals = time.monotonic(), self._counters.snapshot()
        interval_s = max(now - self._last_time, 1e-6)
        recent = totals.minus(self._last)
        self._last, self._last_time = totals, now
        return DeviceMetrics(
            device=self._device,
            time_unix_s=round(time.time(), 3),
            uptime_s=round(now - self._started, 1),
            plan_id=plan_id,
            stage_index=stage_index,
            shard=shard,
            batches_total=totals.batches,
            images_total=totals.images,
            batches_per_s=round(recent.batches / interval_s, 2),
            images_per_s=round(recent.images / interval_s, 2),
            compute_ms_mean=_mean_ms(recent.compute_s, recent.batches),
            wait_ms_mean=_mean_ms(recent.wait_s, recent.batches),
            publish_ms_mean=_mean_ms(recent.publish_s, recent.published),
            utilisation=round(min(1.0, recent.compute_s / interval_s), 4),
            queue_depth=queue_depth,
            bytes_in_total=totals.bytes_in,
            bytes_out_total=totals.bytes_out,
            bytes_in_per_s=round(recent.bytes_in / interval_s, 1),
            bytes_out_per_s=round(recent.bytes_out / interval_s, 1),
            rejected_total=totals.rejected,
            nacks_total=totals.nacks,
            duplicates_total=totals.duplicates,
            reconnects_total=reconnects,
            cpu_percent=self._process.cpu_percent(),
            rss_bytes=self._process.memory_info().rss,
            memory_available_bytes=psutil.virtual_memory().available,
            temperature_celsius=temperature_celsius(),
            throttled=self._throttling.words(),
            tokens_per_s=None if caches is None else round(recent.tokens / interval_s, 2),
            cache_bytes=None if caches is None else caches.size_bytes,
            cache_sequences=None if caches is None else caches.sequences,
            cache_evictions_total=None if caches is None else caches.evictions,
        )


def _mean_ms(total_s: float, count: int) -> float | None:
    return round(total_s / count * 1000, 3) if count else None
