"""Reads ahead in a thread, so that decoding a picture does not hold up the pipeline."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items in the same order, up to ``depth`` of them made ahead of time.

    An exception of ``items`` is raised here, after the items before it.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stopping = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stopping.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def read() -> None:
        try:
            for item in items:
                put((item, None))
                if stopping.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 raised again in the consumer
            put((None, error))
        else:
            put((None, StopIteration()))

    thread = threading.Thread(target=read, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        stopping.set()
        thread.join(timeout=2)
