"""Where every batch is: submitted, in flight, delivered or dead. Pure: no clock, no I/O.

    NEW -> SENT(attempt k, deadline) -> DONE | DEAD(reason)

Times are seconds of whatever clock the caller uses; deadlines use the pipeline's active clock,
which stands still while nothing can be delivered.
"""

from dataclasses import dataclass, field

from client.batch import Batch, DeathReason
from contract.activation import BatchId
from contract.metrics import Ledger as LedgerCounts


@dataclass(slots=True)
class Entry:
    """One open batch. ``routes`` are those of all attempts that this process sent, by attempt."""

    batch_id: BatchId
    batch: Batch
    submitted_at: float
    attempt: int = -1  # none sent yet
    route: tuple[str, ...] = ()
    retry_at: float = 0.0
    why: str = ""  # the reason of the next retry, when it is not the deadline
    refusals: list[str] = field(default_factory=list)
    routes: dict[int, tuple[str, ...]] = field(default_factory=dict)


class Ledger:
    """Every batch of one epoch. Open batches are held; ended ones are only counted."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._open: dict[int, Entry] = {}
        self._next_seq = 0
        self._delivered = self._dead = self._retried = self._duplicates = 0

    def submit(self, batch: Batch, now: float) -> Entry:
        """Take a batch in; it gets the next number."""
        entry = Entry(BatchId(self.epoch, self._next_seq), batch, now)
        self._open[self._next_seq] = entry
        self._next_seq += 1
        return entry

    def sent(self, entry: Entry, route: tuple[str, ...], retry_at: float) -> None:
        """A (further) attempt went out by ``route``."""
        entry.attempt += 1
        entry.route, entry.retry_at, entry.why = route, retry_at, ""
        entry.routes[entry.attempt] = route
        if entry.attempt:
            self._retried += 1

    def find(self, batch_id: BatchId) -> Entry | None:
        """The open batch of this id, or None when it has ended or is not ours."""
        return self._open.get(batch_id.seq) if batch_id.epoch == self.epoch else None

    def knows(self, batch_id: BatchId) -> bool:
        """Whether a batch of this id was ever submitted here."""
        return batch_id.epoch == self.epoch and batch_id.seq < self._next_seq

    def deliver(self, batch_id: BatchId) -> Entry | None:
        """Count a result. None when the batch had one already: a duplicate, counted as such."""
        entry = self.find(batch_id)
        if entry is None:
            self._duplicates += 1
            return None
        del self._open[batch_id.seq]
        self._delivered += 1
        return entry

    def kill(self, entry: Entry, reason: DeathReason) -> DeathReason:
        """Give a batch up."""
        del self._open[entry.batch_id.seq]
        self._dead += 1
        return reason

    def due(self, now: float) -> list[Entry]:
        """Open batches whose attempt has had its time, oldest first."""
        return [entry for entry in self._open.values() if entry.retry_at <= now]

    def open_entries(self) -> list[Entry]:
        """All open batches, oldest first."""
        return list(self._open.values())

    @property
    def low(self) -> int:
        """The low-watermark: no batch below this number is open."""
        return next(iter(self._open), self._next_seq)

    @property
    def span(self) -> int:
        """From the oldest open batch to the next number."""
        return self._next_seq - self.low

    @property
    def in_flight(self) -> int:
        """How many batches are open."""
        return len(self._open)

    def counts(self, finished: bool = False) -> LedgerCounts:
        """The ledger to show. After the end, a batch that is still open is lost."""
        return LedgerCounts(
            submitted=self._next_seq,
            delivered=self._delivered,
            in_flight=0 if finished else self.in_flight,
            retried=self._retried,
            duplicates_dropped=self._duplicates,
            dead=self._dead,
            lost=self._next_seq
            - self._delivered
            - self._dead
            - (0 if finished else self.in_flight),
        )
