"""What one device did while it was recorded: a row of devices.csv. Pure."""

from dataclasses import dataclass, field

from client.records.csv_file import Row
from client.records.reservoir import Mean, Reservoir, rounded
from client.records.rows import plan_cell
from contract.metrics import THROTTLED_FLAGS, DeviceMetrics
from contract.status import ShardState

DEVICE_COLUMNS = (
    *("recorded_from_unix_s", "device", "plan_id", "stage_index", "shard"),
    *("first_heard_unix_s", "last_heard_unix_s", "seconds", "starts", "batches", "images"),
    *("images_per_s_mean", "images_per_s_max", "compute_ms_mean", "compute_ms_p50"),
    *("compute_ms_p95", "wait_ms_mean", "publish_ms_mean", "utilisation_mean", "utilisation_max"),
    *("cpu_percent_mean", "queue_depth_max", "bytes_in", "bytes_out", "memory_mean_bytes"),
    *("memory_peak_bytes", "memory_available_min_bytes", "temperature_max_celsius", "throttled"),
    *("reconnects", "rejected", "nacks", "duplicates"),
)

_TOTALS = (
    *("batches_total", "images_total", "bytes_in_total", "bytes_out_total", "reconnects_total"),
    *("rejected_total", "nacks_total", "duplicates_total"),
)


@dataclass
class DeviceSummary:
    """Adds up the metrics of one device.

    Counters are those of the agent since its start: counted is what they grew by while we listened,
    also across a new start of the agent, which lets them begin at 0.
    """

    device: str
    compute_ms: Reservoir = field(default_factory=Reservoir)
    """Of single batches, from the traces of clients."""
    _last: DeviceMetrics | None = None
    _first_heard: float = 0.0
    _last_heard: float = 0.0
    _grown: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TOTALS, 0))
    _seconds: float = 0.0
    _starts: int = 0
    _means: dict[str, Mean] = field(default_factory=dict)
    _flags: set[str] = field(default_factory=set)
    _images_per_s_max: float = 0.0
    _utilisation_max: float = 0.0
    _queue_max: int = 0
    _memory_peak: int = 0
    _available_min: int | None = None
    _hottest: float | None = None

    def take(self, metrics: DeviceMetrics, now_unix_s: float) -> None:
        """Take one message in; ``now_unix_s`` is when it was heard, by our clock."""
        batches = self._count(metrics)
        is_first = self._last is None  # of the second before we listened
        if is_first:
            self._first_heard = now_unix_s
        self._last, self._last_heard = metrics, now_unix_s
        self._mean("compute").add(metrics.compute_ms_mean, batches)
        self._mean("wait").add(metrics.wait_ms_mean, batches)
        # Outputs are acknowledged in a later second than they are computed in, where that is slow.
        self._mean("publish").add(metrics.publish_ms_mean, 0 if is_first else max(1, batches))
        self._mean("utilisation").add(metrics.utilisation)
        self._mean("cpu").add(metrics.cpu_percent)
        self._mean("memory").add(metrics.rss_bytes)
        self._images_per_s_max = max(self._images_per_s_max, metrics.images_per_s)
        self._utilisation_max = max(self._utilisation_max, metrics.utilisation)
        self._queue_max = max(self._queue_max, metrics.queue_depth)
        self._memory_peak = max(self._memory_peak, metrics.rss_bytes)
        available, celsius = metrics.memory_available_bytes, metrics.temperature_celsius
        if self._available_min is None or available < self._available_min:
            self._available_min = available
        if celsius is not None and (self._hottest is None or celsius > self._hottest):
            self._hottest = celsius
        self._flags.update(set(metrics.throttled or ()) & set(THROTTLED_FLAGS))

    def _count(self, metrics: DeviceMetrics) -> int:
        """Add what the counters grew by; the batches among it."""
        last = self._last
        if last is None:
            self._starts = 1
            return 0
        is_new_start = metrics.uptime_s < last.uptime_s or any(
            getattr(metrics, name) < getattr(last, name) for name in _TOTALS
        )  # it may be up for longer now than when it was last heard
        self._starts += is_new_start
        self._seconds += metrics.uptime_s - (0.0 if is_new_start else last.uptime_s)
        for name in _TOTALS:
            before = 0 if is_new_start else getattr(last, name)
            self._grown[name] += max(0, getattr(metrics, name) - before)
        before = 0 if is_new_start else last.batches_total
        return max(0, metrics.batches_total - before)

    def _mean(self, name: str) -> Mean:
        return self._means.setdefault(name, Mean())

    def row(self, recorded_from_unix_s: float) -> Row:
        """The row of devices.csv, once metrics of it were heard."""
        last, grown = self._last, self._grown
        assert last is not None
        images = grown["images_total"]
        return (
            recorded_from_unix_s,
            self.device,
            plan_cell(last.plan_id),
            last.stage_index,
            last.shard if last.shard in set(ShardState) else "",
            round(self._first_heard, 3),
            round(self._last_heard, 3),
            round(self._seconds, 1),
            self._starts,
            grown["batches_total"],
            images,
            round(images / self._seconds, 2) if self._seconds else None,
            self._images_per_s_max,
            rounded(self._mean("compute").value()),
            rounded(self.compute_ms.percentile(50)),
            rounded(self.compute_ms.percentile(95)),
            rounded(self._mean("wait").value()),
            rounded(self._mean("publish").value()),
            rounded(self._mean("utilisation").value(), 4),
            self._utilisation_max,
            rounded(self._mean("cpu").value(), 1),
            self._queue_max,
            grown["bytes_in_total"],
            grown["bytes_out_total"],
            int(self._mean("memory").value() or 0),
            self._memory_peak,
            self._available_min,
            self._hottest,
            ";".join(sorted(self._flags)),
            grown["reconnects_total"],
            grown["rejected_total"],
            grown["nacks_total"],
            grown["duplicates_total"],
        )
