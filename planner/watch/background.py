"""One piece of planning at a time in a thread of its own, which can be told to leave off."""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from contract.errors import ShardlineError
from planner.progress import Progress

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class _LeftOffError(ShardlineError):
    """Told to leave off: nobody waits for the answer any more."""


class Background(Generic[Result]):
    """Runs ``work`` once. It is handed a progress callback and must call it now and then."""

    def __init__(self, work: Callable[[Progress], Result]) -> None:
        self._work = work
        self._leave_off = threading.Event()
        self._result: Result | None = None
        self._error: ShardlineError | None = None
        self._thread = threading.Thread(target=self._run, name="replan", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether :meth:`result` will answer at once."""
        return not self._thread.is_alive()

    def result(self) -> Result | None:
        """What came of it; None also when it was told to leave off.

        Raises:
            ShardlineError: what went wrong.
        """
        self._thread.join()
        if self._error is not None and not isinstance(self._error, _LeftOffError):
            raise self._error
        return self._result

    @property
    def is_left_off(self) -> bool:
        """Whether it was told to leave off: then its result says nothing."""
        return self._leave_off.is_set()

    def leave_off(self, wait_s: float = 0.0) -> None:
        """End at the next step; wait for that so long."""
        self._leave_off.set()
        self._thread.join(timeout=wait_s)

    def _progress(self, step: str, fraction: float) -> None:
        log.debug("%s: %.0f %%", step, 100 * fraction)
        if self._leave_off.is_set():
            raise _LeftOffError(step)

    def _run(self) -> None:
        try:
            self._result = self._work(self._progress)
        except ShardlineError as error:
            self._error = error
        except Exception as error:
            log.exception("planning failed")
            self._error = ShardlineError(f"planning failed: {type(error).__name__}: {error}")
