"""One file on its way into the cache: which ranges to ask for, and what to do with what comes.

Knows no network and no clock: messages and times are handed in. A few requests are outstanding at
a time, so that the link is full while the broker holds little and a stage's activations find room
between the chunks. Chunks of one sender arrive in the order of its answers: one that is ahead of
what is expected means that an earlier one was lost, and that one is asked for again at once. When
nothing comes at all, the last requests are repeated, ever more slowly, and one at a time.
"""

import hashlib
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from contract.blob import BlobChunk, BlobRequest
from contract.errors import ShardError, ShardHashMismatchError
from contract.plan import ShardFile

CHUNK_BYTES = 128 * 1024
"""10 ms of a 100 Mbit/s link: what an activation waits for at most behind one chunk."""
WINDOW = 6
"""Chunks asked for and not yet here. Two links in a row and the answer take about three chunks'
time; twice that keeps the slower link busy."""
FIRST_PATIENCE_S, LONGEST_PATIENCE_S = 2.0, 30.0
_READ_BYTES = 1024 * 1024


@dataclass(slots=True)
class _Asked:
    """A range asked for; ``data`` once it is here, waiting for those before it."""

    offset: int
    length: int
    at_s: float
    data: bytes | None = None
    repeated: bool = False


class Download:
    """Use as a context manager: it holds the partial file open."""

    def __init__(
        self,
        file: ShardFile,
        partial: Path,
        chunk_bytes: int = CHUNK_BYTES,
        window: int = WINDOW,
    ) -> None:
        """``partial`` may hold the beginning of the file, from an earlier try."""
        self._expected, self._path = file, partial
        self._chunk_bytes, self._most = chunk_bytes, window
        self._window = window
        self._asked: deque[_Asked] = deque()
        self._hash = hashlib.sha256()
        self._patience_s = FIRST_PATIENCE_S
        self._slowest_s = 0.0
        self._last_news_s: float | None = None
        self._first_asked = (-1, 0.0)  # offset and time of what was asked for before a silence
        self.written_bytes = 0

    def __enter__(self) -> "Download":
        try:
            self._file = self._path.open("ab+")
            self._resume()
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def _resume(self) -> None:
        """Take over what an earlier try has written; too much of it cannot be of this file."""
        self._file.seek(0, 2)
        if self._file.tell() > self._expected.size_bytes:
            self._file.truncate(0)
        self._file.seek(0)
        while piece := self._file.read(_READ_BYTES):
            self._hash.update(piece)
            self.written_bytes += len(piece)

    @property
    def is_whole(self) -> bool:
        """Whether every byte is written; :meth:`verify` says whether they are the right ones."""
        return self.written_bytes >= self._expected.size_bytes

    def due(self, now_s: float) -> list[BlobRequest]:
        """The requests to send now: as many as the window has room for."""
        if self._last_news_s is None:
            self._last_news_s = now_s
        if self._asked and now_s - self._last_news_s > self._patience_s:
            # The network, the broker or the planner is away or slow: more of the same would not
            # help it. One request at a time, until something comes.
            self._patience_s = min(2 * self._patience_s, LONGEST_PATIENCE_S)
            self._last_news_s = now_s
            self._window = 1
            # Its answer may only be slow: how slow, is counted from the first time (Karn and
            # Partridge 1987), or the patience would never learn it.
            self._first_asked = (self._asked[0].offset, self._asked[0].at_s)
            self._asked.clear()
        fresh = []
        while len(self._asked) < self._window:
            last = self._asked[-1] if self._asked else None
            offset = self.written_bytes if last is None else last.offset + last.length
            length = min(self._chunk_bytes, self._expected.size_bytes - offset)
            if length <= 0:
                break
            since_s = self._first_asked[1] if offset == self._first_asked[0] else now_s
            self._asked.append(_Asked(offset, length, since_s))
            fresh.append(self._request(self._asked[-1]))
        return fresh

    def accept(self, chunk: BlobChunk, now_s: float) -> list[BlobRequest]:
        """Take a chunk in, if it was asked for; returns requests for what was lost before it.

        Raises:
            ShardError: the disk refuses the bytes.
        """
        wanted = next(
            (
                asked
                for asked in self._asked
                if asked.data is None
                and chunk.sha256 == self._expected.sha256
                and (asked.offset, asked.length) == (chunk.offset, len(chunk.data))
            ),
            None,
        )
        if wanted is None:
            return []  # of another file, or answered twice
        wanted.data = bytes(chunk.data)
        self._last_news_s = now_s
        self._slowest_s = max(0.9 * self._slowest_s, now_s - wanted.at_s)
        self._patience_s = min(max(FIRST_PATIENCE_S, 4 * self._slowest_s), LONGEST_PATIENCE_S)
        self._window = min(self._most, self._window + 1)
        lost = []
        for asked in self._asked:
            if asked is wanted or wanted.repeated:
                break
            if asked.data is None and not asked.repeated:
                asked.repeated, asked.at_s = True, now_s
                lost.append(self._request(asked))
        self._write()
        return lost

    def _write(self) -> None:
        try:
            while self._asked and self._asked[0].data is not None:
                data = self._asked.popleft().data
                assert data is not None
                self._file.write(data)
                self._hash.update(data)
                self.written_bytes += len(data)
        except OSError as error:
            raise self._unwritable(error) from error

    def verify(self) -> None:
        """Compare the hash of the whole file; a wrong one leaves nothing behind.

        Raises:
            ShardHashMismatchError: these are not the bytes that the plan names.
        """
        self._file.flush()
        os.fsync(self._file.fileno())  # before it gets its final name: a plug may be pulled
        actual = self._hash.hexdigest()
        if actual != self._expected.sha256:
            self._path.unlink(missing_ok=True)
            raise ShardHashMismatchError(self._path, self._expected.sha256, actual)

    def _request(self, asked: _Asked) -> BlobRequest:
        return BlobRequest(sha256=self._expected.sha256, offset=asked.offset, length=asked.length)

    def _unwritable(self, error: OSError) -> ShardError:
        return ShardError(
            f"{self._path}: cannot write it ({error.strerror or error}); is the disk full, or the "
            "card read-only?"
        )
