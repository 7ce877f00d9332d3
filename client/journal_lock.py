"""One writer at a time for a journal: a lock that dies with its process, however that dies."""

import fcntl
from pathlib import Path
from typing import IO

from client.journal_schema import naming_the_file
from contract.errors import JournalError


class JournalLock:
    """Holds `FILE-lock` beside the journal. The file stays; what counts is who has it open."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            JournalError: another process has it, or the folder cannot be written.
        """
        lock_path = path.with_name(f"{path.name}-lock")
        with naming_the_file(path, "cannot be locked"):
            self._file: IO[str] = lock_path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise JournalError(
                f"journal {path}: another process is using it; wait for it or stop it, or name "
                "another file"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Let others have it."""
        self._file.close()
