"""Reads a journal, while its run goes on or after it: counts, results in input order, the dead."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.batch import Batch, BatchResult, DeadBatch, DeathReason, Ended
from client.journal_schema import connect_to_read, naming_the_file
from client.journal_subject import read_subject
from contract.activation import BatchId, decode
from contract.errors import JournalError, WireFormatError
from contract.metrics import Ledger as LedgerCounts


@dataclass(frozen=True, slots=True)
class JournalCounts:
    """How many batches are in each state. ``redriven``: dead ones that another batch replaces.

    ``images``: of all batches but those; ``images_done``: of those with a result.
    ``attempts_again``: attempts beyond the first, of all batches.
    """

    new: int
    sent: int
    done: int
    dead: int
    redriven: int
    images: int
    images_done: int
    starts: int
    attempts_again: int

    @property
    def open(self) -> int:
        """How many batches have not ended."""
        return self.new + self.sent

    def ledger(self) -> LedgerCounts:
        """The same in the words of a run that is over. Open batches are not lost: they go on."""
        return LedgerCounts(
            submitted=self.open + self.done + self.dead,
            delivered=self.done,
            in_flight=self.open,
            retried=self.attempts_again,
            duplicates_dropped=0,
            dead=self.dead,
            lost=0,
        )


@dataclass(frozen=True, slots=True)
class DeadRow:
    """A batch that was given up. ``redriven_as``: the number of the batch that replaces it."""

    seq: int
    reason: str
    detail: str
    attempts: int
    images: tuple[str, ...]
    redriven_as: int | None


class JournalReader:
    """Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open a journal that is there.

        Raises:
            JournalError: no such file, or it is no journal, or a damaged one.
        """
        self._path = path
        self._database = connect_to_read(path)
        with naming_the_file(path, "cannot be read"):
            self.subject = read_subject(self._database, path)

    def __enter__(self) -> "JournalReader":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._database.close()

    @property
    def is_finished(self) -> bool:
        """Whether every batch of the source is here and none is open."""
        return self.subject.is_exhausted and not self.counts().open

    def counts(self) -> JournalCounts:
        """How many batches are in each state.

        Raises:
            JournalError: it cannot be read.
        """
        with naming_the_file(self._path, "cannot be read"):
            rows = self._database.execute(
                "SELECT state, redriven_as IS NOT NULL, count(*), sum(images), "
                "sum(max(attempt, 0)) FROM batches GROUP BY 1, 2"
            ).fetchall()
            (starts,) = self._database.execute("SELECT count(*) FROM starts").fetchone()
        found = {(state, bool(redriven)): count for state, redriven, count, _, _ in rows}
        return JournalCounts(
            **{state: found.get((state, False), 0) for state in ("new", "sent", "done", "dead")},
            redriven=found.get(("dead", True), 0),
            images=sum(images for _, redriven, _, images, _ in rows if not redriven),
            images_done=sum(images for state, _, _, images, _ in rows if state == "done"),
            starts=starts,
            attempts_again=sum(again for *_, again in rows),
        )

    def dead(self) -> list[DeadRow]:
        """The batches that were given up, in input order, the re-driven ones included.

        Raises:
            JournalError: it cannot be read.
        """
        with naming_the_file(self._path, "cannot be read"):
            rows = self._database.execute(
                "SELECT seq, reason, detail, attempt + 1, names, redriven_as FROM batches "
                "WHERE state = 'dead' ORDER BY place, seq"
            ).fetchall()
        return [
            DeadRow(seq, reason, detail, attempts, tuple(json.loads(names)), new)
            for seq, reason, detail, attempts, names, new in rows
        ]

    def ended(self) -> Iterator[Ended]:
        """Every batch that has ended, once, in input order.

        A result has its outputs, but not its input. Re-driven batches stand where the dead ones
        stood.

        Raises:
            JournalError: it cannot be read, or a result in it is damaged.
        """
        with naming_the_file(self._path, "cannot be read"):
            seqs = self._database.execute(
                "SELECT seq FROM batches WHERE state IN ('done', 'dead') AND redriven_as IS NULL "
                "ORDER BY place"
            ).fetchall()
        for (seq,) in seqs:
            with naming_the_file(self._path, "cannot be read"):
                row = self._database.execute(
                    "SELECT names, labels, reason, detail, epoch, latency_ms, message FROM batches "
                    "JOIN starts ON number = born LEFT JOIN results USING (seq) WHERE seq = ?",
                    (seq,),
                ).fetchone()
            yield self._end(seq, *row)

    def _end(
        self,
        seq: int,
        names: str,
        labels: str,
        reason: str | None,
        detail: str | None,
        epoch: str,
        latency_ms: float | None,
        message: bytes | None,
    ) -> Ended:
        batch = Batch({}, tuple(json.loads(names)), tuple(json.loads(labels)))
        if message is None or latency_ms is None:
            id_ = BatchId(int(epoch, 16), seq)
            return DeadBatch(id_, batch, DeathReason(reason or ""), detail or "")
        try:
            header, outputs = decode(message)
        except WireFormatError as error:
            raise JournalError(
                f"journal {self._path}: the result of batch {seq} is damaged: {error}; restore a "
                "copy, or move the file away and begin a new one"
            ) from error
        return BatchResult(
            batch_id=header.batch_id,
            batch=batch,
            outputs=outputs,
            latency_ms=latency_ms,
            attempt=header.attempt,
            hops=header.trace,
            route=header.route,
        )
