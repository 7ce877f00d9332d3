"""What is published on the metrics topics: field names carry their units; docs/topics.md lists all.

Counters end in ``_total`` and count since the process started; rates and means are over the
last interval (about a second). A field that a board cannot tell is ``null``.
"""

from typing import Literal

from contract.frozen import FrozenModel
from contract.printable import PlainText


class DeviceMetrics(FrozenModel):
    """One JSON object a second from each device agent."""

    format_version: Literal[1] = 1
    device: PlainText
    time_unix_s: float
    uptime_s: float
    plan_id: PlainText | None
    stage_index: int | None
    shard: PlainText
    batches_total: int
    images_total: int
    batches_per_s: float
    images_per_s: float
    compute_ms_mean: float | None
    wait_ms_mean: float | None
    publish_ms_mean: float | None
    utilisation: float
    queue_depth: int
    bytes_in_total: int
    bytes_out_total: int
    bytes_in_per_s: float
    bytes_out_per_s: float
    rejected_total: int
    nacks_total: int
    duplicates_total: int
    reconnects_total: int
    cpu_percent: float
    rss_bytes: int
    memory_available_bytes: int
    temperature_celsius: float | None


class StageMetrics(FrozenModel):
    """One stage as the client sees it in the traces of the results of the last interval."""

    stage_index: int
    compute_ms_p50: float | None
    wait_ms_p50: float | None
    utilisation: float
    bubble_s: float


class Ledger(FrozenModel):
    """Where every batch is. ``submitted = delivered + in_flight + dead + lost`` always."""

    submitted: int
    delivered: int
    in_flight: int
    retried: int
    duplicates_dropped: int
    dead: int
    lost: int


class PipelineMetrics(FrozenModel):
    """One JSON object a second from each client that feeds the pipeline."""

    format_version: Literal[1] = 1
    client: PlainText
    time_unix_s: float
    plan_id: PlainText
    window: int
    batches_per_s: float
    images_per_s: float
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    latency_ms_p99: float | None
    stages: tuple[StageMetrics, ...]
    ledger: Ledger
