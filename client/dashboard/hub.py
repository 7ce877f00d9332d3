"""Looks at the cluster once a second and hands the same message to every browser.

Everything here runs on one asyncio loop, apart from the observer, whose view is thread-safe.
Bounded: so many browsers, and for each the newest message only, so that one that does not keep up
misses seconds instead of filling the memory.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from client.dashboard.history import Samples
from client.dashboard.messages import ViewMessage
from client.dashboard.picture import picture_of
from client.watch.view import ClusterView

INTERVAL_S = 1.0
MAX_BROWSERS = 32
STALLED_AFTER = 30
"""Messages that a browser may miss one after the other before its place is free again."""

Look = Callable[[], ClusterView]
Explain = Callable[[ClusterView], Sequence[str]]


class TooManyBrowsersError(Exception):
    """Every place is taken."""


class Mailbox:
    """One browser's: holds the newest message, or the end."""

    def __init__(self) -> None:
        self._message: str | None = None
        self._changed = asyncio.Event()
        self._ended = False
        self.missed = 0

    def put(self, message: str) -> None:
        """Leave a message; one that was not fetched is replaced."""
        self.missed = 0 if self._message is None else self.missed + 1
        self._message = message
        self._changed.set()

    def end(self) -> None:
        """Let the browser go."""
        self._ended = True
        self._changed.set()

    async def get(self) -> str | None:
        """The newest message, once it is there; None at the end."""
        await self._changed.wait()
        self._changed.clear()
        message, self._message = self._message, None
        return None if self._ended else message


class Hub:
    """What the server's answers come from."""

    def __init__(
        self,
        look: Look,
        *,
        explain: Explain | None = None,
        max_browsers: int = MAX_BROWSERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is looked at before :meth:`tick`.

        Args:
            look: what is known of the cluster; thread-safe and quick.
            explain: what bounds throughput now and what would help, one sentence each.
            max_browsers: streams at a time.
            clock: monotonic seconds.
        """
        self._look, self._explain, self._clock = look, explain, clock
        self._max_browsers = max_browsers
        self._mailboxes: set[Mailbox] = set()
        self._samples = Samples()
        self._newest: ViewMessage | None = None
        self._ticked_at = clock()
        self._closed = False

    def tick(self) -> None:
        """Look, remember, and tell every browser.

        Raises:
            BrokerError: the broker has refused us something that trying again does not mend.
        """
        now, view = self._clock(), self._look()
        advice = None if self._explain is None else tuple(self._explain(view))
        newest = picture_of(view, round(time.time(), 3), advice)
        self._samples.add(newest.sample, newest.devices, is_connected=newest.is_connected)
        self._newest, self._ticked_at = newest, now
        if not self._mailboxes:
            return
        message = newest.model_dump_json()
        for mailbox in tuple(self._mailboxes):
            mailbox.put(message)
            if mailbox.missed >= STALLED_AFTER:
                self._mailboxes.discard(mailbox)
                mailbox.end()

    async def run(self) -> None:
        """Tick once a second, until cancelled.

        Raises:
            BrokerError: see :meth:`tick`.
        """
        due = self._clock()
        while True:
            self.tick()
            due = max(due + INTERVAL_S, self._clock())  # what was missed is not made up for
            await asyncio.sleep(due - self._clock())

    def full(self) -> str:
        """The newest message with its history, as JSON."""
        newest = self._newest
        if newest is None:
            self.tick()
            newest = self._newest
        assert newest is not None
        history = self._samples.history(newest.devices)
        return newest.model_copy(update={"history": history}).model_dump_json()

    @contextmanager
    def subscribe(self) -> Iterator[Mailbox]:
        """A browser's place, for as long as the context lasts.

        Raises:
            TooManyBrowsersError: all are taken.
        """
        if self.is_full:
            raise TooManyBrowsersError
        mailbox = Mailbox()
        if self._closed:
            mailbox.end()
        self._mailboxes.add(mailbox)
        try:
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)

    @property
    def is_full(self) -> bool:
        """Whether every place is taken."""
        return len(self._mailboxes) >= self._max_browsers

    @property
    def age_s(self) -> float:
        """Seconds since the last look; a second at most while all is well."""
        return self._clock() - self._ticked_at

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for mailbox in self._mailboxes:
            mailbox.end()
