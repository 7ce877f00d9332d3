"""What is published on the metrics topics: field names carry their units; docs/topics.md lists all.

Counters end in ``_total`` and count since the process started; rates and means are over the
last interval (about a second). A field that a board cannot tell is ``null``.
"""

from typing import Annotated, Literal

from pydantic import Field

from contract.frozen import Count, FrozenModel
from contract.placement import MAX_STAGES
from contract.printable import PlainText

StageIndex = Annotated[int, Field(ge=0, lt=MAX_STAGES)]
Figure = Annotated[float, Field(ge=-1e15, le=1e15)]
"""A float that can be summed up and written down, whoever sends it."""
THROTTLED_NOW = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
"""What the firmware of a Raspberry Pi says of itself: of this moment."""
EARLIER = "_earlier"
"""Appended where it was so at some time since the board was started, and is not now."""
THROTTLED_FLAGS = (*THROTTLED_NOW, *(flag + EARLIER for flag in THROTTLED_NOW))
"""All that :attr:`DeviceMetrics.throttled` may hold."""


class DeviceMetrics(FrozenModel):
    """One JSON object a second from each device agent."""

    format_version: Literal[1] = 1
    device: PlainText
    time_unix_s: Figure
    uptime_s: Figure
    plan_id: PlainText | None
    stage_index: StageIndex | None
    shard: PlainText
    batches_total: Count
    images_total: Count
    batches_per_s: Figure
    images_per_s: Figure
    compute_ms_mean: Figure | None
    wait_ms_mean: Figure | None
    publish_ms_mean: Figure | None
    utilisation: Figure
    queue_depth: Count
    bytes_in_total: Count
    bytes_out_total: Count
    bytes_in_per_s: Figure
    bytes_out_per_s: Figure
    rejected_total: Count
    nacks_total: Count
    duplicates_total: Count
    reconnects_total: Count
    cpu_percent: Figure
    rss_bytes: Count
    memory_available_bytes: Count
    temperature_celsius: Figure | None
    throttled: tuple[PlainText, ...] | None = None
    tokens_per_s: Figure | None = None
    cache_bytes: Count | None = None
    cache_sequences: Count | None = None
    cache_evictions_total: Count | None = None


class StageMetrics(FrozenModel):
    """One stage as the client sees it in the traces of the results of the last interval."""

    stage_index: StageIndex
    compute_ms_p50: Figure | None
    wait_ms_p50: Figure | None
    utilisation: Figure
    bubble_s: Figure


class Ledger(FrozenModel):
    """Where every batch is. ``submitted = delivered + in_flight + dead + lost`` always."""

    submitted: Count
    delivered: Count
    in_flight: Count
    retried: Count
    duplicates_dropped: Count
    dead: Count
    lost: int = Field(gt=-(2**63), lt=2**63)  # below 0 would be a batch that counts twice


class PipelineMetrics(FrozenModel):
    """One JSON object a second from each client that feeds the pipeline.

    The last three are of language models; there `window` counts sequences.
    """

    format_version: Literal[1] = 1
    client: PlainText
    time_unix_s: Figure
    plan_id: PlainText
    window: Count
    batches_per_s: Figure
    images_per_s: Figure
    latency_ms_p50: Figure | None
    latency_ms_p95: Figure | None
    latency_ms_p99: Figure | None
    stages: tuple[StageMetrics, ...]
    ledger: Ledger
    tokens_per_s: Figure | None = None
    first_token_ms: Figure | None = None
    near_ties_total: Count | None = None

    @property
    def unit(self) -> Literal["images", "tokens"]:
        """What :attr:`rate` counts: tokens of a language model, images of any other."""
        return "images" if self.tokens_per_s is None else "tokens"

    @property
    def rate(self) -> float:
        """What the client gets a second, in :attr:`unit`."""
        return self.images_per_s if self.tokens_per_s is None else self.tokens_per_s
