"""CSV files that survive their writer: rows are appended whole, tables replaced whole (RFC 4180).

Nothing here overwrites what somebody recorded before: a file that is there is refused, or gone on
with where that is asked for.
"""

import csv
import fcntl
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from contract.errors import SettingsError

Cell = str | int | float | None
Row = Sequence[Cell]
MAX_EARLIER_BYTES = 64 * 1024 * 1024
"""Rows of earlier recordings that a table is replaced together with."""
_BLOCK_BYTES = 64 * 1024


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot write it ({error.strerror}); name a place that you may write, on a "
            "disk with room"
        ) from error


def _text(rows: Iterable[Row]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _shown(line: bytes) -> str:
    return f"{line[:60].decode(errors='replace')!r}…"


def _refuse_other_columns(path: Path, found: bytes, header: bytes) -> None:
    if found != header:
        raise SettingsError(
            f"{path}: begins with {_shown(found)}, expected the columns {_shown(header)}; another "
            "version of Shardline wrote it, or something else: name another folder"
        )


class CsvLog:
    """A file that grows by whole rows. Each :meth:`write` is one call of the system, unbuffered:
    whatever kills the process, what was written before is there.
    """

    def __init__(self, path: Path, columns: Row, *, append: bool) -> None:
        """Create the file, or with ``append`` go on with the one that is there.

        Half a row at its end, of a writer that died, is cut off.

        Raises:
            SettingsError: it is there and ``append`` is not set, has other columns, is written by
                another process, or cannot be written.
        """
        self._path, header = path, _text([columns])
        flags = os.O_RDWR | os.O_CREAT | (0 if append else os.O_EXCL)
        with _naming(path):
            try:
                self._descriptor = os.open(path, flags, 0o644)
            except FileExistsError:
                raise already_there(path) from None
        try:
            with _naming(path):
                self._begin(header)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _begin(self, header: bytes) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"{self._path}: another process is recording into it; stop it, or name another "
                "folder"
            ) from None
        self._end = _end_of_rows(self._descriptor)
        os.ftruncate(self._descriptor, self._end)
        if self._end == 0:
            self._append(header)
        else:
            found = os.pread(self._descriptor, len(header), 0)
            _refuse_other_columns(self._path, found, header)

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; all of them are there, or none.

        Raises:
            SettingsError: it cannot be written, the disk being full for example.
        """
        with _naming(self._path):
            self._append(_text(rows))

    def _append(self, text: bytes) -> None:
        try:
            view = memoryview(text)
            while view:
                view = view[os.pwrite(self._descriptor, view, self._end + len(text) - len(view)) :]
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(text)

    def close(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


def _end_of_rows(descriptor: int) -> int:
    """Where the last whole row ends, in bytes."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


class CsvTable:
    """A file that is replaced whole, in one step: a reader sees the old rows or the new ones.

    Rows of earlier recordings, with ``append``, stay in front of ours.
    """

    def __init__(self, path: Path, columns: Row, *, append: bool) -> None:
        """Look at what is there; :meth:`replace` writes.

        Raises:
            SettingsError: it is there and ``append`` is not set, has other columns, or is larger
                than a table that is replaced again and again should be.
        """
        self._path, self._earlier = path, _text([columns])
        if not path.exists():
            return
        if not append:
            raise already_there(path)
        with _naming(path):
            if path.stat().st_size > MAX_EARLIER_BYTES:
                raise SettingsError(
                    f"{path}: {path.stat().st_size:,} bytes of earlier recordings, at most "
                    f"{MAX_EARLIER_BYTES:,} are gone on with; name another folder"
                )
            found = path.read_bytes()
        _refuse_other_columns(path, found[: len(self._earlier)], self._earlier)
        self._earlier = found if found.endswith(b"\n") else found + b"\n"

    def replace(self, rows: Iterable[Row]) -> None:
        """Put these rows in place of those that were written last.

        Raises:
            SettingsError: it cannot be written.
        """
        replace_file(self._path, self._earlier + _text(rows))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step.

    Raises:
        SettingsError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with _naming(path):
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def already_there(path: Path) -> SettingsError:
    """The refusal to overwrite."""
    return SettingsError(
        f"{path}: is there already; go on with it with --append, or name another place"
    )
