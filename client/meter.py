"""Measures the pipeline from its results: rates, latency percentiles, stage utilisation."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from client.batch import BatchResult
from contract.activation import Hop
from contract.metrics import Ledger, PipelineMetrics, StageMetrics
from contract.plan import Plan

LATENCIES_KEPT = 1000
FIRST_TOKENS_KEPT = 100


class Timed(Protocol):
    """Whatever tells what the stages did."""

    @property
    def hops(self) -> tuple[Hop, ...]:
        """One for each stage that was passed."""
        ...


class TimedStep(NamedTuple):
    """A message of a language model's last stage: a token of some sequences."""

    hops: tuple[Hop, ...]
    tokens: int


class PipelineMeter:
    """Collects results; :meth:`measure` sums up the time since its last call."""

    def __init__(self, client: str, plan: Plan, window: int, now: float) -> None:
        self._client, self._plan, self._window = client, plan, window
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._recent: list[BatchResult] = []
        self._steps: list[TimedStep] = []
        self._first_token_ms: deque[float] = deque(maxlen=FIRST_TOKENS_KEPT)
        self._near_ties = 0
        self._last = now

    def add(self, result: BatchResult) -> None:
        """Count a result."""
        self._latencies.append(result.latency_ms)
        # Without the tensors: a second's worth of them is megabytes, and nobody reads them here.
        light = replace(result.batch, tensors={})
        self._recent.append(replace(result, batch=light, outputs={}))

    def add_step(self, hops: tuple[Hop, ...], tokens: int) -> None:
        """Count a message with so many new tokens."""
        self._steps.append(TimedStep(hops, tokens))

    def add_first_token(self, after_ms: float) -> None:
        """A batch's first tokens came so long after its submission."""
        self._first_token_ms.append(after_ms)

    def add_near_ties(self, count: int) -> None:
        """Another attempt chose other tokens for so many sequences."""
        self._near_ties += count

    @property
    def near_ties(self) -> int:
        """How often another attempt chose another token."""
        return self._near_ties

    @property
    def recent(self) -> Sequence[BatchResult]:
        """Results since the last :meth:`measure`, without their tensors, oldest first."""
        return self._recent

    def measure(self, now: float, ledger: Ledger) -> PipelineMetrics:
        """One message for the metrics topic, over the time since the last call."""
        interval_s = max(now - self._last, 1e-6)
        recent, self._recent, self._last = self._recent, [], now
        steps, self._steps = self._steps, []
        generates = self._plan.decoding is not None
        first = float(np.median(self._first_token_ms)) if self._first_token_ms else None
        p50, p95, p99 = (
            (round(float(p), 3) for p in np.percentile(self._latencies, (50, 95, 99)))
            if self._latencies
            else (None, None, None)
        )
        return PipelineMetrics(
            client=self._client,
            time_unix_s=round(time.time(), 3),
            plan_id=self._plan.plan_id,
            window=self._window,
            batches_per_s=round(len(recent) / interval_s, 2),
            images_per_s=round(sum(r.batch.images for r in recent) / interval_s, 2),
            latency_ms_p50=p50,
            latency_ms_p95=p95,
            latency_ms_p99=p99,
            stages=stage_metrics(self._plan, [*recent, *steps], interval_s),
            ledger=ledger,
            tokens_per_s=round(sum(s.tokens for s in steps) / interval_s, 2) if generates else None,
            first_token_ms=None if first is None else round(first, 3),
            near_ties_total=self._near_ties if generates else None,
        )


def stage_metrics(
    plan: Plan, results: Sequence[Timed], interval_s: float
) -> tuple[StageMetrics, ...]:
    """Busy and idle time of every stage, from the traces of ``results``.

    A stage's ``bubble_s`` is the time in the interval in which its devices computed nothing; its
    utilisation is the rest as a share. Each duration is taken on one device's own clock.
    """
    stages = []
    for index in range(plan.num_stages):
        hops = [result.hops[index] for result in results if len(result.hops) > index]
        compute_us = [max(0, hop.finished_us - hop.started_us) for hop in hops]
        wait_us = [max(0, hop.started_us - hop.received_us) for hop in hops]
        replicas = len(plan.placement[index].replicas) if plan.placement else 1
        utilisation = min(1.0, sum(compute_us) / 1e6 / interval_s / replicas)
        stages.append(
            StageMetrics(
                stage_index=index,
                compute_ms_p50=round(float(np.median(compute_us)) / 1e3, 3) if hops else None,
                wait_ms_p50=round(float(np.median(wait_us)) / 1e3, 3) if hops else None,
                utilisation=round(utilisation, 4),
                bubble_s=round((1 - utilisation) * interval_s, 4),
            )
        )
    return tuple(stages)
