"""The whole model in this process: the single-device baseline of `infer --whole`."""

import time
from collections.abc import Callable, Iterable, Iterator

from client.batch import Batch, BatchResult, Ended
from client.sources import fed_input
from contract.activation import BatchId
from contract.metrics import Ledger
from planner.canonical import canonicalise
from planner.importers import ImportOptions, import_model
from planner.whole import open_whole
from shardline.console import steps


class WholeFeeder:
    """A :class:`shardline.inference.Feeder` that runs each batch here, one after the other."""

    def __init__(self, model: str, chosen: ImportOptions, threads: int, batch_size: int) -> None:
        with steps("importing the model") as step:
            self._model = open_whole(canonicalise(import_model(model, chosen, step), step), threads)
        self.input = fed_input(self._model.info)
        self.tensor = self._model.inputs[0]
        self.labels = self._model.info.labels
        self.batch_size = batch_size
        self._done = 0

    def run(self, work: Iterable[Batch]) -> Iterator[Ended]:
        """See :class:`shardline.inference.Feeder`."""
        for batch in work:
            started = time.perf_counter()
            outputs = self._model.run(dict(batch.tensors))
            latency_ms = (time.perf_counter() - started) * 1000
            batch_id = BatchId(0, self._done)
            self._done += 1
            yield BatchResult(batch_id, batch, outputs, latency_ms, attempt=0)

    def ledger(self) -> Ledger:
        """Everything that went in has come out: there is nothing in between to lose it."""
        return Ledger(
            submitted=self._done,
            delivered=self._done,
            in_flight=0,
            retried=0,
            duplicates_dropped=0,
            dead=0,
            lost=0,
        )

    def waiting_for(self) -> str:
        """See :class:`shardline.inference.Feeder`."""
        return ""

    def on_second(self, call: Callable[[], None]) -> None:
        """Never waits for anything, so there is nothing to say."""
