"""What was published and is not settled yet: a future for each packet, and their bytes in all.

Pure but for the futures, which it holds and never settles.
"""

import threading
from concurrent.futures import Future
from typing import NamedTuple

from paho.mqtt.reasoncodes import ReasonCode

from broker.transport import PublishOutcome
from contract.errors import BrokerError

MAX_MESSAGES = 1024
"""Far above any window: a bug must not become an endless queue."""
MAX_BYTES = 256 * 1024 * 1024
"""The same for large messages. What really bounds them is the window, since no batch is sent again
while its earlier attempt waits here."""

Answer = ReasonCode | BrokerError
"""What settles a future: the broker's own word, or why there will be none."""


class _Waiting(NamedTuple):
    future: Future[PublishOutcome]
    size_bytes: int


class Outbox:
    """Thread-safe: any thread publishes, the network thread settles."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._unsent: set[int] = set()  # QoS 0: gone with the connection, and paho says nothing
        self._early: dict[int, Answer] = {}
        self._publishing = 0
        self._bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """Payloads that the broker has not acknowledged."""
        return self._bytes

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is held."""
        return not (self._waiting or self._unsent or self._early or self._bytes)

    def begin(self, size_bytes: int) -> bool:
        """Make room for a message that is about to be published; False if there is none.

        One message always finds room when nothing else waits, however large it is.
        """
        with self._lock:
            full = len(self._waiting) >= MAX_MESSAGES or self._bytes + size_bytes > MAX_BYTES
            if full and self._waiting:
                return False
            self._publishing += 1
            self._bytes += size_bytes
            return True

    def keep(
        self, mid: int, future: Future[PublishOutcome], size_bytes: int, *, qos: int, kept: bool
    ) -> Answer | None:
        """The message got packet number ``mid``; the answer to it, if that has overtaken us.

        ``kept`` False: it was not taken, so no answer will come.
        """
        with self._lock:
            early = self._early.pop(mid, None)
            self._end()
            if early is None and kept:
                self._waiting[mid] = _Waiting(future, size_bytes)
                if qos == 0:
                    self._unsent.add(mid)
            else:
                self._bytes -= size_bytes
        return early

    def give_up(self, size_bytes: int) -> None:
        """The message of :meth:`begin` was not published after all."""
        with self._lock:
            self._end()
            self._bytes -= size_bytes

    def _end(self) -> None:
        self._publishing -= 1
        if self._publishing == 0:
            self._early.clear()

    def take(self, mid: int, answer: Answer) -> Future[PublishOutcome] | None:
        """The future that is to be settled with ``answer``.

        None if nobody waits for this number yet: if its publisher is about to, the answer waits.
        """
        with self._lock:
            waiting = self._waiting.pop(mid, None)
            self._unsent.discard(mid)
            if waiting is None:
                if self._publishing:
                    self._early[mid] = answer
                return None
            self._bytes -= waiting.size_bytes
        return waiting.future

    def take_unsent(self) -> list[Future[PublishOutcome]]:
        """The futures of what is lost with the connection."""
        with self._lock:
            lost = [self._waiting.pop(mid) for mid in self._unsent if mid in self._waiting]
            self._unsent.clear()
            self._bytes -= sum(waiting.size_bytes for waiting in lost)
        return [waiting.future for waiting in lost]
