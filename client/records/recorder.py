"""Writes what an observer hears into files, while it hears it."""

import queue
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from broker.transport import Delivery
from client.records.collection import Collection
from client.records.csv_file import CsvLog, CsvTable
from client.records.device_summary import DEVICE_COLUMNS
from client.records.profile_file import ProfileFile
from client.records.rows import BATCH_COLUMNS, PIPELINE_COLUMNS
from client.records.stage_summary import STAGE_COLUMNS
from contract.errors import SettingsError

FLUSH_S = 1.0
SUMMARISE_S = 10.0
MAX_WAITING = 4096
"""Messages heard and not yet taken: about a minute of 50 devices, should the disk stand still."""


class Recorded(NamedTuple):
    """What a recording came to. ``unrecorded``: messages that came faster than the disk took them,
    and batches whose trace made no sense.
    """

    seconds: float
    batches: int
    pipeline_rows: int
    devices: int
    plans: int
    unrecorded: int


class Recorder:
    """Files of one recording. Use as a context manager, which closes them.

    :meth:`hear` is for the network thread, the rest for one other.
    """

    def __init__(
        self, cluster: str, *, folder: Path | None, profile: Path | None, append: bool
    ) -> None:
        """Hear from now on; :meth:`open` opens files.

        Args:
            cluster: that is recorded.
            folder: for the CSV files; None for none.
            profile: the JSON file; None for none.
            append: go on with what is there.
        """
        self._cluster, self._folder, self._file, self._append = cluster, folder, profile, append
        self._waiting: queue.Queue[tuple[Delivery, float]] = queue.Queue(MAX_WAITING)
        self._missed = self._pipeline_rows = 0
        self._collection = Collection(recorded_from_unix_s=round(time.time(), 3))
        self._began = self._flushed = self._summarised = time.monotonic()
        self._files = ExitStack()
        self._logs: tuple[CsvLog, CsvLog] | None = None
        self._tables: tuple[CsvTable, CsvTable] | None = None
        self._profile: ProfileFile | None = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._files.close()

    def open(self) -> None:
        """Open the files.

        Raises:
            SettingsError: one is there and is not to be gone on with, or cannot be written.
        """
        append, folder = self._append, self._folder
        if self._file is not None:
            self._profile = ProfileFile(self._file, self._cluster, append=append)
        if folder is not None:
            _make(folder)
            self._tables = (
                CsvTable(folder / "devices.csv", DEVICE_COLUMNS, append=append),
                CsvTable(folder / "stages.csv", STAGE_COLUMNS, append=append),
            )
            batches = CsvLog(folder / "batches.csv", BATCH_COLUMNS, append=append)
            self._files.callback(batches.close)
            pipeline = CsvLog(folder / "pipeline.csv", PIPELINE_COLUMNS, append=append)
            self._files.callback(pipeline.close)
            self._logs = batches, pipeline
        self._summarise()

    def hear(self, delivery: Delivery) -> None:
        """Take a message; it is recorded soon. Thread-safe, and never waits."""
        try:
            self._waiting.put_nowait((delivery, time.time()))
        except queue.Full:
            self._missed += 1

    def work(self, timeout_s: float) -> None:
        """Record what was heard, waiting for it at most so long; write what is due.

        Raises:
            SettingsError: a file cannot be written.
        """
        self._take_waiting(timeout_s)
        now = time.monotonic()
        if now - self._flushed >= FLUSH_S:
            self._flush()
            self._flushed = now
        if now - self._summarised >= SUMMARISE_S:
            self._summarise()
            self._summarised = now

    def _take_waiting(self, timeout_s: float) -> None:
        try:
            self._collection.take(*self._waiting.get(timeout=timeout_s))
            for _ in range(self._waiting.qsize()):
                self._collection.take(*self._waiting.get_nowait())
        except queue.Empty:
            pass

    def _flush(self) -> None:
        batches = self._collection.take_batch_rows()
        pipeline = self._collection.take_pipeline_rows()
        if self._logs is not None:
            self._logs[0].write(batches)
            self._logs[1].write(pipeline)
        self._pipeline_rows += len(pipeline)

    def _summarise(self) -> None:
        if self._tables is not None:
            self._tables[0].replace(self._collection.device_rows())
            self._tables[1].replace(self._collection.stage_rows())
        if self._profile is not None:
            self._profile.replace(self._collection, round(time.time(), 3))

    def finish(self) -> Recorded:
        """Record all that was heard; what it came to.

        Raises:
            SettingsError: a file cannot be written.
        """
        while not self._waiting.empty():
            self._take_waiting(0)
        self._flush()
        self._summarise()
        return Recorded(
            seconds=round(time.monotonic() - self._began, 1),
            batches=self._collection.batches,
            pipeline_rows=self._pipeline_rows,
            devices=len(self._collection.devices),
            plans=len(self._collection.plans),
            unrecorded=self._missed + self._collection.unsound,
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"--csv {folder}: cannot make this folder ({error.strerror}); name one that you may "
            "write"
        ) from error
