"""Waits for several acknowledgements without a thread that waits."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


def when_all_are_settled(futures: Sequence[Future[Any]], then: Callable[[], None]) -> None:
    """Call ``then`` once, when the last of ``futures`` has ended, on the thread that ended it.

    At once if all have ended, or if there are none.
    """
    if not futures:
        then()
        return
    lock, left = threading.Lock(), len(futures)

    def settled(_future: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = not left
        if is_last:
            then()

    for future in futures:
        future.add_done_callback(settled)
