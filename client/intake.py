"""Takes batches from a source as far as there is room for them in flight."""

from collections.abc import Callable, Iterable

from client.batch import Batch, NothingYet
from client.sending import Sender


class Intake:
    """A source, and the batch of it that waits for room of its own."""

    def __init__(
        self,
        batches: Iterable[Batch | NothingYet],
        sender: Sender,
        begin: Callable[[Batch], None],
    ) -> None:
        """``begin``: what to do with a batch that ``sender`` has room for."""
        self._source, self._sender, self._begin = iter(batches), sender, begin
        self._held: Batch | None = None
        self.is_exhausted = False
        """Whether the source has no more."""

    def fill(self) -> None:
        """Begin batches until there is no room, or none to be had.

        With nothing in flight the source is asked in any case: a device that is away keeps nobody
        from hearing that there is no more to do.
        """
        while not self.is_exhausted:
            has_room = self._sender.has_room()
            if self._held is None and not has_room and not self._sender.is_idle:
                return
            batch = self._held or next(self._source, None)
            if batch is None:
                self.is_exhausted = True
                return
            if isinstance(batch, NothingYet):
                return
            self._held = batch
            if not has_room or not self._sender.fits(batch):
                return
            self._held = None
            self._begin(batch)
