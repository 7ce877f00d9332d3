"""Which batch was being computed when this process died: a small file that survives the process.

MQTT counts no deliveries: a batch that kills its stage would be delivered to every new start of it.
So the batch is written down before it is computed and wiped out after; what stands there at the
next start has killed us, and is counted. Of a language model a batch comes in many messages: one
that is survived clears it only from the position on at which it has killed. Process death is all
that this covers, so nothing is synchronised to the disk: the kernel keeps what was written
(docs/adr/0026).

    offset 0    32 bytes: client's hash, epoch, seq of the batch in work, and the position of its
                message; zeros when there is none
    offset 32   SUSPECTS x 40 bytes: the same, and how many deaths; zeros where there is none
"""

import logging
import os
import struct
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from contract.activation import Header

SUSPECTS = 16
"""Batches remembered that were in work at a death; the oldest is forgotten first."""
_IN_WORK = struct.Struct("<QQQQ")
_SUSPECT = struct.Struct("<QQQQQ")
_NOTHING = bytes(_IN_WORK.size)
_SIZE = _IN_WORK.size + SUSPECTS * _SUSPECT.size

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One batch of one client, whatever the attempt."""

    client: int
    epoch: int
    seq: int

    @classmethod
    def of(cls, header: Header) -> "Batch":
        """The batch of a message. A hash of the client is kept, never 0, which means nothing."""
        return cls(xxh3_64_intdigest(header.client.encode()) | 1, *header.batch_id)


class Suspect(NamedTuple):
    """How often a batch was in work at a death, and the position of its message at the last one."""

    deaths: int
    position: int


class CrashMarker:
    """Used by the computing thread alone. Without a writable folder it remembers nothing."""

    def __init__(self, path: Path | None) -> None:
        """Read what an earlier process left in the file at ``path``; None remembers nothing."""
        self._suspects: OrderedDict[Batch, Suspect] = OrderedDict()
        self._file = None if path is None else _open(path)
        if self._file is not None:
            self._take_over(os.pread(self._file, _SIZE, 0).ljust(_SIZE, b"\0"))

    def _take_over(self, content: bytes) -> None:
        for client, epoch, seq, position, deaths in _SUSPECT.iter_unpack(content[_IN_WORK.size :]):
            if client:
                self._suspects[Batch(client, epoch, seq)] = Suspect(deaths, position)
        *batch, position = _IN_WORK.unpack_from(content)
        killer = Batch(*batch)
        if killer.client:
            deaths = self.deaths(killer) + 1
            self._suspects[killer] = Suspect(deaths, position)
            self._suspects.move_to_end(killer)
            while len(self._suspects) > SUSPECTS:
                self._suspects.popitem(last=False)
            log.warning(
                "the last process of this device died computing batch %016x:%d (time %d)",
                killer.epoch,
                killer.seq,
                deaths,
            )
            self._write(_NOTHING + self._table())  # at once: no death is counted twice

    def _table(self) -> bytes:
        table = b"".join(
            _SUSPECT.pack(*batch, suspect.position, suspect.deaths)
            for batch, suspect in self._suspects.items()
        )
        return table.ljust(SUSPECTS * _SUSPECT.size, b"\0")

    def deaths(self, batch: Batch) -> int:
        """How often this device has died computing it."""
        suspect = self._suspects.get(batch) if self._suspects else None
        return 0 if suspect is None else suspect.deaths

    def begin(self, batch: Batch, position: int = 0) -> None:
        """It is about to be computed; of a language model its tokens from ``position`` on."""
        self._write(_IN_WORK.pack(*batch, position))

    def end(self, batch: Batch, position: int = 0, *, is_survived: bool = True) -> None:
        """It is not in work any more. ``is_survived``: the engine computed or refused it, where
        something else was said to it without.
        """
        suspect = self._suspects.get(batch) if self._suspects else None
        if is_survived and suspect is not None and position >= suspect.position:
            del self._suspects[batch]  # it was somebody else's fault
            self._write(_NOTHING + self._table())
        else:
            self._write(_NOTHING)

    def _write(self, content: bytes) -> None:
        if self._file is None:
            return
        try:
            os.pwrite(self._file, content, 0)
        except OSError as error:
            log.warning("crash marker: %s; no batch is remembered any more", error)
            self.close()

    def close(self) -> None:
        """Let the file go; it stays for the next start."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _open(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # All of it exists before it is needed: a disk that is full later changes nothing.
            size = os.fstat(file).st_size
            if size != _SIZE:  # new, or of another version
                os.ftruncate(file, 0)
                size = 0
            os.pwrite(file, bytes(max(0, _SIZE - size)), size)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s): a batch that kills this process will not be refused; give "
            "--cache a folder that can be written",
            path,
            error.strerror or error,
        )
        return None
    return file
