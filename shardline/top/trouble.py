"""Warnings of the connection, which must not be printed across a drawn screen, kept to be shown."""

import logging
import time

from contract.printable import printable

SHOWN_S = 10.0


class Trouble(logging.Handler):
    """Remembers the last warning of ours. Thread-safe, as every handler."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: tuple[float, str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        self._last = time.monotonic(), printable(record.getMessage())

    def latest(self) -> str | None:
        """The last warning, None where it is older than ten seconds."""
        last = self._last
        return last[1] if last is not None and time.monotonic() - last[0] <= SHOWN_S else None
