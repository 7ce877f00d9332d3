"""What a run amounts to: images, time, accuracy, latency, and the ledger."""

from dataclasses import dataclass, field

import numpy as np

from client.batch import BatchResult, DeadBatch
from client.results import ImageResult
from contract.frozen import FrozenModel
from contract.metrics import Ledger


class Summary(FrozenModel):
    """The figures of one run; `shardline infer --json` prints it.

    ``resumed_images``: how many of the images earlier runs of the same journal have answered; the
    rate is that of the others.
    """

    images: int
    resumed_images: int = 0
    skipped: int
    seconds: float
    images_per_s: float
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    latency_ms_p99: float | None
    labelled: int
    correct: int
    accuracy: float | None
    ledger: Ledger


@dataclass
class Tally:
    """Counts results as they come."""

    images: int = 0
    labelled: int = 0
    correct: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    dead: list[DeadBatch] = field(default_factory=list)

    def add(self, result: BatchResult, rows: list[ImageResult]) -> None:
        """Count one batch and its rows."""
        self.latencies_ms.append(result.latency_ms)
        self.images += len(rows)
        for row in rows:
            if row.is_correct is not None:
                self.labelled += 1
                self.correct += row.is_correct

    def summary(
        self, seconds: float, skipped: int, ledger: Ledger, resumed_images: int = 0
    ) -> Summary:
        """The figures so far."""
        p50, p95, p99 = (
            (round(float(p), 3) for p in np.percentile(self.latencies_ms, (50, 95, 99)))
            if self.latencies_ms
            else (None, None, None)
        )
        return Summary(
            images=self.images,
            resumed_images=resumed_images,
            skipped=skipped,
            seconds=round(seconds, 3),
            images_per_s=round((self.images - resumed_images) / seconds, 2) if seconds else 0.0,
            latency_ms_p50=p50,
            latency_ms_p95=p95,
            latency_ms_p99=p99,
            labelled=self.labelled,
            correct=self.correct,
            accuracy=round(self.correct / self.labelled, 6) if self.labelled else None,
            ledger=ledger,
        )
