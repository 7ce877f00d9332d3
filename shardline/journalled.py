"""`infer --journal`: a run that is written down, goes on after its own death, and ends in a file.

The results file is made from the journal at the end, so that it has each image once, whichever run
got its answer.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from client.batch import Batch
from client.journal import Journal
from client.journal_reader import JournalCounts, JournalReader
from client.journal_rendering import render
from client.journal_subject import check_source
from client.pipeline import Pipeline
from client.prefetch import prefetch
from client.results import check_result_name
from client.sources import Source, batches, fed_input
from client.summary import Summary
from contract.errors import DeliveryError, JournalError
from contract.metrics import Ledger
from contract.plan import ImageInput, TensorInput
from contract.tensor_spec import TensorSpec
from shardline.console import err, progress_bar
from shardline.inference import (
    READ_AHEAD_BATCHES,
    PipelineFeeder,
    batch_size_of,
    conclude,
    open_any_source,
)


@dataclass(frozen=True, slots=True)
class JournalledRun:
    """What the user asked for. ``batch``: images in a batch; None: what the plan says."""

    journal: Journal
    text: str
    batch: int | None
    out_path: Path | None
    top_k: int
    as_json: bool

    def __post_init__(self) -> None:
        """Refuse a results file of another kind before anything is sent."""
        if self.out_path is not None:
            check_result_name(self.out_path)

    def is_finished(self) -> bool:
        """Whether there is nothing left to send. Refuses another source before anybody waits.

        Raises:
            JournalError: the journal is of another source.
            SourceError: the source is not there any more.
        """
        with JournalReader(self.journal.path) as reader:
            if reader.subject.source_identity is None or reader.subject.tensor is None:
                return False
            self._source_of(reader)
            return reader.is_finished

    def _source_of(self, reader: JournalReader) -> Source:
        """The source, opened as the journal's model needs it, which must be the journal's."""
        subject = reader.subject
        if subject.model is None or subject.tensor is None:
            raise JournalError(f"journal {self.journal.path}: does not say which model it is of")
        known = _Known(fed_input(subject.model), subject.tensor, subject.model.labels)
        source = open_any_source(self.text, known)
        check_source(subject, self.text, source.identity, self.journal.path)
        return source

    def show_finished(self) -> Summary:
        """Make the results file again, and say what it amounts to.

        Raises:
            DeliveryError: some batch has no result.
        """
        with JournalReader(self.journal.path) as reader:
            counts = reader.counts()
            return self._end(reader, self._source_of(reader), counts, counts.ledger(), 0.0)

    def run(self, pipeline: Pipeline) -> Summary:
        """Send what is open, then what is new; make the results file.

        Raises:
            JournalError: it is of another source or model, or cannot be written.
            DeliveryError: some batch has no result.
        """
        feeder = PipelineFeeder(pipeline)
        source = open_any_source(self.text, feeder)
        size = batch_size_of(feeder, self.batch)
        self.journal.take_source(self.text, source.identity)
        with JournalReader(self.journal.path) as reader:
            before = reader.counts()
            started = time.perf_counter()
            try:
                self._feed(pipeline, feeder, source, size, before.images_done)
            except KeyboardInterrupt:
                err.print(
                    f"interrupted: what is done is in {self.journal.path}; the same command again "
                    "goes on from there",
                    markup=False,
                    soft_wrap=True,
                )
                raise
            seconds = time.perf_counter() - started
            self.journal.note_exhausted()
            return self._end(reader, source, before, pipeline.counts(finished=True), seconds)

    def _feed(
        self, pipeline: Pipeline, feeder: PipelineFeeder, source: Source, size: int, done: int
    ) -> None:
        name = feeder.tensor.name

        def reread(batch: Batch) -> Batch:
            assert batch.positions is not None
            items = islice(source.read(batch.positions[0]), batch.images)
            again = next(batches(items, name, batch.images), None)
            if again is None or (again.names, again.positions) != (batch.names, batch.positions):
                raise JournalError(
                    f"journal {self.journal.path}: {self.text} no longer gives {batch.names[0]} "
                    "and what follows it; put the source back as it was"
                )
            return replace(batch, tensors=again.tensors)

        first = self.journal.end_position()
        work = prefetch(batches(source.read(first), name, size), READ_AHEAD_BATCHES)
        with progress_bar() as bar:
            task = bar.add_task("images", total=source.total, completed=done, note="")

            def say_what_it_waits_for() -> None:
                waiting = feeder.waiting_for()
                bar.update(task, note=f"waiting: {waiting}" if waiting else "")

            feeder.on_second(say_what_it_waits_for)
            for end in pipeline.run(work, reread=reread):
                bar.advance(task, end.batch.images)

    def _end(
        self,
        reader: JournalReader,
        source: Source,
        before: JournalCounts,
        ledger: Ledger,
        seconds: float,
    ) -> Summary:
        tally = render(reader, self.out_path, self.top_k)
        skipped = source.total - reader.counts().images
        summary = tally.summary(seconds, skipped, ledger, before.images_done)
        try:
            conclude(summary, tally.dead, source, self.text, self.out_path, self.as_json)
        except DeliveryError as error:
            raise DeliveryError(
                f"{error}; `shardline journal redrive {self.journal.path}` lets the next run send "
                "them again"
            ) from None
        return summary


@dataclass(frozen=True, slots=True)
class _Known:
    """A :class:`shardline.inference.Taker` of which no more is known."""

    input: ImageInput | TensorInput
    tensor: TensorSpec
    labels: Sequence[str]
