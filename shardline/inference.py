"""Runs a source through a pipeline (or a whole model), writes the rows, shows the end."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from rich.table import Table

from client.batch import Batch, DeadBatch, Ended
from client.pipeline import Pipeline
from client.prefetch import prefetch
from client.results import ResultWriter, check_result_name, image_results, in_order, result_writer
from client.sources import Source, batches, fed_input, open_source
from client.summary import Summary, Tally
from contract.errors import DeliveryError, SettingsError, SourceError
from contract.metrics import Ledger
from contract.plan import ImageInput, TensorInput
from contract.tensor_spec import TensorSpec
from shardline.console import err, out, print_json, progress_bar

READ_AHEAD_BATCHES = 4


class Taker(Protocol):
    """What a source needs to know of a model."""

    @property
    def input(self) -> ImageInput | TensorInput:
        """How a picture becomes the input tensor."""
        ...

    @property
    def tensor(self) -> TensorSpec:
        """The input tensor."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """The names of the classes, where the model has names."""
        ...


class Feeder(Taker, Protocol):
    """Whatever answers batches: a pipeline, or a whole model in this process."""

    @property
    def batch_size(self) -> int:
        """Images in a batch at most."""
        ...

    def run(self, work: Iterable[Batch]) -> Iterator[Ended]:
        """Each batch's end, in any order."""
        ...

    def ledger(self) -> Ledger:
        """Where every batch is, after :meth:`run` has ended."""
        ...

    def waiting_for(self) -> str:
        """What holds it up now; empty when nothing does."""
        ...

    def on_second(self, call: Callable[[], None]) -> None:
        """Call back about once a second while :meth:`run` works or waits."""
        ...


class PipelineFeeder:
    """A pipeline as a :class:`Feeder`."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Raises PlanError where the pipeline runs a language model."""
        plan = pipeline.plan
        self._pipeline = pipeline
        self.input = fed_input(plan.model)
        self.tensor = plan.stages[0].inputs[0]
        self.labels = plan.model.labels
        self.batch_size = plan.batch_size

    def run(self, work: Iterable[Batch]) -> Iterator[Ended]:
        """See :class:`Feeder`."""
        return self._pipeline.run(work)

    def ledger(self) -> Ledger:
        """See :class:`Feeder`."""
        return self._pipeline.counts(finished=True)

    def waiting_for(self) -> str:
        """See :class:`Feeder`."""
        return self._pipeline.waiting_for()

    def on_second(self, call: Callable[[], None]) -> None:
        """See :class:`Feeder`."""
        self._pipeline.on_metrics = lambda _metrics: call()


def open_any_source(text: str, taker: Taker) -> Source:
    """The source that ``text`` names, datasets included.

    Raises:
        SourceError: nothing there that the model can take.
    """
    if text == "cifar10" or text.startswith("cifar10:"):
        from shardline.datasets import cifar10_source

        return cifar10_source(text, taker.input)
    return open_source(text, taker.input, taker.tensor, taker.labels)


def batch_size_of(feeder: Feeder, batch: int | None) -> int:
    """Images in a batch: those asked for, or as many as the plan takes.

    Raises:
        SettingsError: more than the plan was made for.
    """
    if batch is not None and batch > feeder.batch_size:
        raise SettingsError(
            f"--batch {batch}: this plan was made for at most {feeder.batch_size}; plan it again "
            f"with --batch {batch}"
        )
    return batch or feeder.batch_size


def run_inference(
    feeder: Feeder, text: str, batch: int | None, out_path: Path | None, top_k: int, as_json: bool
) -> Summary:
    """Feed, write, print.

    Raises:
        SourceError: the source holds nothing usable.
        DeliveryError: some batch has no result; the summary is printed before.
    """
    source = open_any_source(text, feeder)
    size = batch_size_of(feeder, batch)
    with ExitStack() as stack:
        writer = _open_writer(out_path, feeder.labels, top_k, stack)
        tally = Tally()
        try:
            summary = _consume(feeder, source, size, writer, top_k, tally)
        except KeyboardInterrupt:
            kept = "" if out_path is None else f"; their rows are in {out_path}"
            err.print(f"interrupted: {tally.images} images are done{kept}", markup=False)
            raise
    conclude(summary, tally.dead, source, text, out_path, as_json)
    return summary


def conclude(
    summary: Summary,
    dead: Sequence[DeadBatch],
    source: Source,
    text: str,
    out_path: Path | None,
    as_json: bool,
) -> None:
    """Tell what a run amounts to.

    Raises:
        SourceError: nothing of the source could be read.
        DeliveryError: some batch has no result.
    """
    for detail in source.skipped:
        err.print(f"skipped: {detail}", markup=False, soft_wrap=True)
    for death in dead:
        told = f"no result: batch {death.batch_id}: {death.reason}: {death.detail}"
        err.print(told, markup=False, soft_wrap=True)
    if as_json:
        print_json(summary.model_dump(mode="json"))
    elif str(out_path) != "-":
        out.print(summary_table(summary))
    if summary.images == 0 and source.skipped:
        raise SourceError(f"{text}: none of its {source.total} pictures could be read")
    if summary.ledger.dead or summary.ledger.lost:
        raise DeliveryError(
            f"{summary.ledger.dead} batches were given up and {summary.ledger.lost} are lost"
        )


def _consume(
    feeder: Feeder,
    source: Source,
    batch_size: int,
    writer: ResultWriter | None,
    top_k: int,
    tally: Tally,
) -> Summary:
    """Write every row as its turn comes; ``tally`` holds what is done when this is interrupted."""
    work = prefetch(batches(source.items, feeder.tensor.name, batch_size), READ_AHEAD_BATCHES)
    started = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task("images", total=source.total, note="")

        def say_what_it_waits_for() -> None:
            waiting = feeder.waiting_for()
            if waiting:
                bar.update(task, note=f"waiting: {waiting}")

        feeder.on_second(say_what_it_waits_for)
        for end in in_order(feeder.run(work)):
            if isinstance(end, DeadBatch):
                tally.dead.append(end)
                if writer is not None:
                    writer.write_dead(end)
                continue
            rows = image_results(end, top_k)
            tally.add(end, rows)
            if writer is not None:
                for row in rows:
                    writer.write(row)
            elapsed = time.perf_counter() - started
            bar.update(task, completed=tally.images, note=f"{tally.images / elapsed:.1f} images/s")
    seconds = time.perf_counter() - started
    return tally.summary(seconds, len(source.skipped), feeder.ledger())


def _open_writer(
    path: Path | None, labels: Sequence[str], top_k: int, stack: ExitStack
) -> ResultWriter | None:
    if path is None:
        return None
    if str(path) == "-":
        return result_writer(path, sys.stdout, labels, top_k)
    check_result_name(path)
    try:
        file = stack.enter_context(path.open("w", newline="", encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--out {path}: cannot write it ({error.strerror})") from error
    return result_writer(path, file, labels, top_k)


def summary_table(summary: Summary) -> Table:
    """A run's figures for people."""
    table = Table(show_header=False, box=None)
    skipped = f", {summary.skipped} skipped" if summary.skipped else ""
    now = summary.images - summary.resumed_images
    resumed = f" ({summary.resumed_images:,} by earlier runs)" if summary.resumed_images else ""
    table.add_row("images", f"{summary.images:,}{resumed} in {summary.seconds:.2f} s{skipped}")
    if now:
        table.add_row("throughput", f"{summary.images_per_s:,.1f} images/s")
    if summary.latency_ms_p50 is not None:
        table.add_row(
            "batch latency",
            f"p50 {summary.latency_ms_p50:,.1f} ms, p95 {summary.latency_ms_p95:,.1f} ms, "
            f"p99 {summary.latency_ms_p99:,.1f} ms",
        )
    if summary.accuracy is not None:
        table.add_row(
            "accuracy", f"{summary.accuracy:.2%} ({summary.correct} of {summary.labelled})"
        )
    table.add_row("ledger", ledger_line(summary.ledger))
    return table


def ledger_line(ledger: Ledger) -> str:
    """The ledger in one line."""
    return (
        f"{ledger.submitted} submitted = {ledger.delivered} delivered, {ledger.lost} lost, "
        f"{ledger.dead} dead\n"
        f"{ledger.retried} retried, {ledger.duplicates_dropped} duplicates dropped"
    )
