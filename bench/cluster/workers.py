"""The controls: workers without a network, each in a device's share.

As many whole-model workers as devices: every ratio is against them, what N devices would do if none
ever waited for another. And the stages of a plan, each alone: the slowest bounds the plan.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.cluster.cgroups import ProcessorShare
from bench.cluster.devices import DEVICES_CPU
from bench.workers import WholeModelWorker


@dataclass(frozen=True, slots=True)
class WorkerRates:
    """Images a second of each worker while all ran."""

    each: tuple[float, ...]

    @property
    def together(self) -> float:
        """Of all."""
        return sum(self.each)


class ControlWorkers:
    """Workers that idle until told to run. Use as a context manager."""

    def __init__(
        self, work: Sequence[tuple[Path, tuple[int, ...], ProcessorShare]], batch: int
    ) -> None:
        """Start a worker for each graph, the shape of its input without the batch, and share.

        It is put into its share once it is warm.
        """
        self._stack = ExitStack()
        self._workers = []
        try:
            for graph, shape, share in work:
                worker = WholeModelWorker(graph, DEVICES_CPU, batch, shape)
                self._workers.append(self._stack.enter_context(worker))
                share.add(worker.pid)
        except BaseException:
            self._stack.close()
            raise

    def run(self, seconds: float) -> WorkerRates:
        """Let all run for so long at once."""
        for worker in self._workers:
            worker.start(seconds)
        return WorkerRates(tuple(worker.images_per_s() for worker in self._workers))

    def __enter__(self) -> "ControlWorkers":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()


def median_rates(runs: Sequence[WorkerRates]) -> WorkerRates:
    """The median of each worker over several runs."""
    return WorkerRates(tuple(map(statistics.median, zip(*(run.each for run in runs), strict=True))))
