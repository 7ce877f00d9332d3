"""The controls: workers without a network, each in a device's share.

As many whole-model workers as devices: every ratio is against them, what N devices would do if none
ever waited for another. And the stages of a plan, each alone: the slowest bounds the plan.
"""

import contextlib
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.cluster.cgroups import ProcessorShare
from bench.cluster.devices import DEVICES_CPU
from bench.workers import WholeModelWorker

TURN_S = 0.5


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

    @contextlib.contextmanager
    def busy(self, spared: int) -> Iterator[None]:
        """Keep all but one working, as they do while a plan runs.

        Devices that stand for machines of their own share this machine's caches and memory here:
        one that is measured while the others idle finds its weights in a cache that it will not
        have to itself.
        """
        working = [worker for index, worker in enumerate(self._workers) if index != spared]
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set():
                for worker in working:
                    worker.start(TURN_S)
                for worker in working:
                    worker.images_per_s()

        thread = threading.Thread(target=work, name="busy-workers")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def __enter__(self) -> "ControlWorkers":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()


def median_rates(runs: Sequence[WorkerRates]) -> WorkerRates:
    """The median of each worker over several runs."""
    return WorkerRates(tuple(map(statistics.median, zip(*(run.each for run in runs), strict=True))))
