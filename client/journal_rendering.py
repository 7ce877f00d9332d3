"""Makes a results file from a journal: whole or not at all, and the same each time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from client.batch import DeadBatch
from client.journal_reader import JournalReader
from client.results import check_result_name, image_results, result_writer
from client.summary import Tally
from contract.errors import SettingsError


def render(
    reader: JournalReader, path: Path | None, top_k: int, *, only_dead: bool = False
) -> Tally:
    """Write one row for each image of each batch that has ended, in input order.

    Args:
        reader: the journal.
        path: `.csv`, `.jsonl`, `.json`, or `-` for stdout; None writes nothing.
        top_k: classes listed for each image.
        only_dead: leave the results out.

    Returns:
        The same counted.

    Raises:
        SettingsError: a name that cannot be written.
        JournalError: the journal cannot be read.
    """
    labels = () if reader.subject.model is None else reader.subject.model.labels
    tally = Tally()
    with _whole_or_not_at_all(path) as file:
        writer = None if path is None or file is None else result_writer(path, file, labels, top_k)
        for end in reader.ended():
            if isinstance(end, DeadBatch):
                tally.dead.append(end)
                if writer is not None:
                    writer.write_dead(end)
                continue
            rows = image_results(end, top_k)
            tally.add(end, rows)
            if writer is not None and not only_dead:
                for row in rows:
                    writer.write(row)
    return tally


@contextmanager
def _whole_or_not_at_all(path: Path | None) -> Iterator[IO[str] | None]:
    """A file that gets its name when it is complete and on the disk."""
    if path is None or str(path) == "-":
        yield None if path is None else sys.stdout
        return
    check_result_name(path)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise SettingsError(f"--out {path}: cannot write it ({error.strerror})") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
