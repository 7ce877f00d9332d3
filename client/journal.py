"""The client's durable journal: an SQLite file that a run goes on from after the client's death.

    NEW -> SENT(attempt k, deadline) -> DONE(result) | DEAD(reason)

A batch's ``seq`` is its number here, for good; each start of the client has an epoch of 64 random
bits, and a result under any epoch of this journal counts, once. What is noted between two commits
is written in one transaction. Why it is so: docs/adr/0025.
"""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from client.batch import Batch, DeathReason
from client.journal_lock import JournalLock
from client.journal_schema import connect_to_write, naming_the_file, transaction
from client.journal_subject import (
    check_model,
    check_source,
    read_subject,
    write_about,
)
from client.ledger import Carried, CarriedBatch, Entry, Ledger
from client.settings import random_client_name
from contract.activation import decode
from contract.errors import JournalError, WireFormatError
from contract.plan import Plan
from contract.tensor_spec import Tensors

Synchronous = Literal["normal", "full"]

COMMIT_INTERVAL_S = 0.01


class Journal:
    """A :class:`client.record.Record` in a file. One process at a time, one thread.

    Use as a context manager, or give it to a :class:`client.pipeline.Pipeline`, which closes it.
    """

    commit_interval_s = COMMIT_INTERVAL_S

    def __init__(self, path: Path, synchronous: Synchronous = "normal") -> None:
        """Open ``path``, or begin a journal there.

        Args:
            path: the file; `-wal`, `-shm` and `-lock` are put beside it.
            synchronous: ``normal`` survives the process's death; after a power cut the last batches
                may be computed again. ``full`` waits for the disk at each commit.

        Raises:
            JournalError: another process has it, it is no journal, or it cannot be written.
        """
        self.path = path
        self._lock = JournalLock(path)
        self._synchronous = synchronous
        try:
            self.database = connect_to_write(path, synchronous.upper())
        except BaseException:
            self._lock.release()
            raise
        try:
            with naming_the_file(path, "cannot be read"):
                self.subject = read_subject(self.database, path)
        except BaseException:
            self.close()
            raise
        self.start = self._first_new = 0
        self._new: list[tuple[object, ...]] = []
        self._inputs: list[tuple[int, bytes]] = []
        self._again: dict[int, tuple[int, float, int]] = {}
        self._results: list[tuple[int, float, bytes]] = []
        self._dead: list[tuple[str, str, int, int]] = []

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # What it is of

    def client_name(self, username: str | None = None) -> str:
        """The client's name: the user name if there is one, else the same for every start.

        Raises:
            JournalError: it cannot be written.
        """
        name = username or self.subject.client or random_client_name()
        self._note(client=name)
        return name

    def take_plan(self, plan: Plan) -> None:
        """Note the model that answers, the first time; after that, check that it is the same.

        Raises:
            JournalError: another model than before.
        """
        check_model(self.subject, plan, self.path)
        if self.subject.model is None:
            tensor = plan.stages[0].inputs[0]
            self._note(model=plan.model.model_dump_json(), tensor=tensor.model_dump_json())

    def take_source(self, text: str, identity: str) -> None:
        """Note the source that is read, the first time; after that, check that it is the same.

        Raises:
            JournalError: another source than before.
        """
        check_source(self.subject, text, identity, self.path)
        if self.subject.source_identity is None:
            self._note(source=text, source_identity=identity)

    def note_exhausted(self) -> None:
        """Every batch of the source is here. Call it after the last commit."""
        self._note(exhausted="1")

    def _note(self, **values: str) -> None:
        with transaction(self.database, self.path):
            write_about(self.database, **values)
        with naming_the_file(self.path, "cannot be read"):
            self.subject = read_subject(self.database, self.path)

    # Going on

    def begin(self, now: float) -> Ledger:
        """The ledger of a new start, with all that the earlier ones have left.

        Raises:
            JournalError: it cannot be read or written.
        """
        epoch = self.new_start()
        with naming_the_file(self.path, "cannot be read"):
            carried = self._carried()
        self._first_new = carried.next_seq
        return Ledger(epoch, carried, now)

    def new_start(self) -> int:
        """Register another epoch and return it: lasting, a power cut included.

        Raises:
            JournalError: it cannot be written.
        """
        epoch = secrets.randbits(64)
        with naming_the_file(self.path, "cannot be written"):
            self.database.execute("PRAGMA synchronous = FULL")
            cursor = self.database.execute(
                "INSERT INTO starts (epoch) VALUES (?)", (f"{epoch:016x}",)
            )
            self.start = cursor.lastrowid or 0
            self.database.execute(f"PRAGMA synchronous = {self._synchronous.upper()}")
        return epoch

    def _carried(self) -> Carried:
        rows = self.database.execute(
            "SELECT seq, attempt, strikes, names, labels, first, end FROM batches "
            "WHERE state IN ('new', 'sent') ORDER BY seq"
        )
        left = tuple(
            CarriedBatch(seq, _batch(names, labels, first, end), attempt, strikes)
            for seq, attempt, strikes, names, labels, first, end in rows
        )
        counts = dict(
            self.database.execute(
                "SELECT state, count(*) FROM batches WHERE redriven_as IS NULL GROUP BY state"
            ).fetchall()
        )
        return Carried(
            next_seq=self.next_seq(),
            delivered=counts.get("done", 0),
            dead=counts.get("dead", 0),
            open_batches=left,
            ends=self._ends(),
        )

    def next_seq(self) -> int:
        """The number that the next batch gets."""
        (next_seq,) = self.database.execute(
            "SELECT COALESCE(MAX(seq) + 1, 0) FROM batches"
        ).fetchone()
        return int(next_seq)

    def _ends(self) -> dict[int, int]:
        """For each earlier epoch, the number below which its batches are those of this file.

        A start may have sent batches that it died before writing down; the next start has given
        their numbers to others, and what answers the former must not count for the latter.
        """
        born = dict(
            self.database.execute("SELECT born, MAX(seq) + 1 FROM batches GROUP BY born").fetchall()
        )
        ends, end = {}, 0
        starts = self.database.execute("SELECT number, epoch FROM starts ORDER BY number")
        for number, epoch in starts.fetchall():
            end = max(end, born.get(number, 0))
            if number != self.start:
                ends[int(epoch, 16)] = end
        return ends

    def end_position(self) -> int:
        """Where in the source the next batch begins.

        Raises:
            JournalError: it cannot be read.
        """
        with naming_the_file(self.path, "cannot be read"):
            (end,) = self.database.execute("SELECT MAX(end) FROM batches").fetchone()
        return int(end or 0)

    def read_input(self, entry: Entry) -> Tensors:
        """The tensors of a batch whose input is kept here.

        Raises:
            JournalError: it is not, or is damaged.
        """
        seq = entry.batch_id.seq
        with naming_the_file(self.path, "cannot be read"):
            row = self.database.execute(
                "SELECT message FROM inputs WHERE seq = ?", (seq,)
            ).fetchone()
        if row is None:
            raise JournalError(
                f"journal {self.path}: the input of batch {seq} is not kept here, as it was read "
                "from a source: go on with `shardline infer`"
            )
        try:
            return decode(row[0]).tensors
        except WireFormatError as error:
            raise JournalError(
                f"journal {self.path}: the input of batch {seq} is damaged: {error}; move the file "
                "away and begin a new one, or restore a copy"
            ) from error

    # Writing down: see client.record.Record

    @property
    def is_dirty(self) -> bool:
        """Whether something was noted since the last commit."""
        return bool(self._new or self._again or self._results or self._dead)

    def sent(self, entry: Entry, message: bytes, *, keep_input: bool) -> None:
        """Note an attempt; the first one brings the batch into the file."""
        seq = entry.batch_id.seq
        if entry.attempt or seq < self._first_new:
            self._again[seq] = (entry.attempt, entry.deadline_s, entry.strikes)
            return
        batch = entry.batch
        row = (seq, self.start, seq, entry.attempt, entry.deadline_s, entry.strikes)
        self._new.append(
            (*row, json.dumps(batch.names), json.dumps(batch.labels), batch.images)
            + ((None, None) if keep_input or batch.positions is None else batch.positions)
        )
        if keep_input:
            self._inputs.append((seq, message))

    def done(self, entry: Entry, message: bytes, latency_ms: float) -> None:
        """Note a result. Of two the first counts, here as in the ledger."""
        self._results.append((entry.batch_id.seq, latency_ms, message))

    def dead(self, entry: Entry, reason: DeathReason, detail: str) -> None:
        """Note that a batch was given up."""
        self._dead.append((reason, detail, entry.strikes, entry.batch_id.seq))

    def commit(self) -> None:
        """Write all that was noted in one transaction; if that fails it can be tried again.

        Raises:
            JournalError: it cannot be written, as when the disk is full.
        """
        if not self.is_dirty:
            return
        with transaction(self.database, self.path):
            self._write()
        for noted in (self._new, self._inputs, self._again, self._results, self._dead):
            noted.clear()

    def _write(self) -> None:
        def write(statement: str, noted: Sequence[Sequence[object]]) -> None:
            if noted:
                self.database.executemany(statement, noted)

        write(
            "INSERT INTO batches (seq, born, place, state, attempt, deadline_s, strikes, names, "
            "labels, images, first, end) VALUES (?, ?, ?, 'sent', ?, ?, ?, ?, ?, ?, ?, ?)",
            self._new,
        )
        write("INSERT INTO inputs VALUES (?, ?)", self._inputs)
        write(
            "UPDATE batches SET state = 'sent', attempt = ?, deadline_s = ?, strikes = ? "
            "WHERE seq = ? AND state IN ('new', 'sent')",
            [(*values, seq) for seq, values in self._again.items()],
        )
        write("INSERT INTO results VALUES (?, ?, ?) ON CONFLICT (seq) DO NOTHING", self._results)
        done = [(seq,) for seq, _, _ in self._results]
        write("UPDATE batches SET state = 'done' WHERE seq = ?", done)
        write("DELETE FROM inputs WHERE seq = ?", done)
        write(
            "UPDATE batches SET state = 'dead', reason = ?, detail = ?, strikes = ? WHERE seq = ?",
            self._dead,
        )

    def close(self) -> None:
        """Close the file. What was not committed is gone, as if the process had died."""
        self.database.close()
        self._lock.release()


def _batch(names: str, labels: str, first: int | None, end: int | None) -> Batch:
    """A batch as the file has it: without its tensors."""
    positions = None if first is None or end is None else (first, end)
    return Batch({}, tuple(json.loads(names)), tuple(json.loads(labels)), positions)
