"""Where every batch is: submitted, in flight, delivered or dead. Pure: no clock, no I/O.

    NEW -> SENT(attempt k, deadline) -> DONE | DEAD(reason)

Times are seconds of whatever clock the caller uses; deadlines use the pipeline's active clock,
which stands still while nothing can be delivered. What outlives the process is `record.py`'s.
"""

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from broker.transport import PublishOutcome
from client.batch import Batch, DeathReason
from client.generation.progress import Generation
from client.retry import ACTIVE_STEP_S
from contract.activation import BatchId
from contract.metrics import Ledger as LedgerCounts


@dataclass(slots=True)
class Attempt:
    """One sending of a batch: by which devices, when it was handed to the broker, and what the
    clock of deadlines showed then, in seconds.

    ``sent_tokens``: how many of each sequence went out with a language model's, which
    ``has_answered`` once it has brought a token.
    """

    route: tuple[str, ...]
    published_at: float = 0.0
    active_at: float = 0.0
    sent_tokens: int = 0
    has_answered: bool = False

    def taken_s(self, active_s: float, now: float) -> float:
        """What it has taken until ``now`` (monotonic), in seconds.

        Outages do not count (``active_s``, the clock of deadlines), nor the time in which whoever
        takes the results was busy.
        """
        return min(now - self.published_at, active_s - self.active_at + ACTIVE_STEP_S)


@dataclass(slots=True)
class Entry:
    """One open batch.

    ``earlier_strikes``: what was held against it when the client was started before. ``attempts``
    are those that this process sent, by number; ``message_bytes`` the size of the latest.
    ``generation``: how far a language model's batch has come.
    """

    batch_id: BatchId
    batch: Batch
    submitted_at: float
    attempt: int = -1  # none sent yet
    route: tuple[str, ...] = ()
    retry_at: float = 0.0
    deadline_s: float = 0.0  # what the latest attempt was given
    give_up_at: float = math.inf
    why: str = ""  # the reason of the next retry, when it is not the deadline
    refusals: list[str] = field(default_factory=list)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    message_bytes: int = 0
    sending: Future[PublishOutcome] | None = None  # done once the broker has the latest attempt
    deaths: int = 0
    earlier_strikes: int = 0
    generation: Generation | None = None

    @property
    def strikes(self) -> int:
        """How many attempts an engine has refused, or a device has not survived."""
        return self.earlier_strikes + len(self.refusals) + self.deaths

    def is_at(self, batch_id: BatchId, attempt: int) -> bool:
        """Whether this is the latest attempt, and not one of an earlier start or a replaced one."""
        return (self.batch_id, self.attempt) == (batch_id, attempt)


@dataclass(frozen=True, slots=True)
class CarriedBatch:
    """An open batch that an earlier start has left. Its tensors are not read yet."""

    seq: int
    batch: Batch
    attempt: int
    strikes: int


@dataclass(frozen=True, slots=True)
class Carried:
    """What the earlier starts of a client have left behind.

    ``ends``: for each earlier epoch, the number below which its batches are this ledger's. A number
    that was given and not kept may stand for another batch now.
    """

    next_seq: int = 0
    delivered: int = 0
    dead: int = 0
    open_batches: tuple[CarriedBatch, ...] = ()  # by ascending number
    ends: Mapping[int, int] = field(default_factory=dict)


NOTHING_CARRIED = Carried()


class Ledger:
    """Every batch of one client. Open batches are held; ended ones are only counted.

    Batches that were carried over wait until they are admitted again, before any new one.
    """

    def __init__(self, epoch: int, carried: Carried = NOTHING_CARRIED, now: float = 0.0) -> None:
        self.epoch = epoch
        self._ends = carried.ends
        self._next_seq = carried.next_seq
        self._delivered, self._dead = carried.delivered, carried.dead
        self._open = {
            left.seq: Entry(
                BatchId(epoch, left.seq),
                left.batch,
                now,
                left.attempt,
                retry_at=math.inf,
                earlier_strikes=left.strikes,
            )
            for left in carried.open_batches
        }
        self._waiting = dict(self._open)
        self._submitted = carried.delivered + carried.dead + len(self._open)
        self._retried = self._duplicates = 0

    def submit(self, batch: Batch, now: float) -> Entry:
        """Take a batch in; it gets the next number."""
        entry = Entry(BatchId(self.epoch, self._next_seq), batch, now)
        self._open[self._next_seq] = entry
        self._next_seq += 1
        self._submitted += 1
        return entry

    def waiting(self) -> Entry | None:
        """The oldest batch that was carried over and is not admitted yet."""
        return next(iter(self._waiting.values()), None)

    def admit(self, entry: Entry, batch: Batch, now: float) -> None:
        """Put a batch that was carried over in flight again; ``batch`` is it with its tensors."""
        del self._waiting[entry.batch_id.seq]
        entry.batch, entry.submitted_at, entry.retry_at = batch, now, 0.0

    def sent(self, entry: Entry, route: tuple[str, ...], retry_at: float) -> None:
        """A (further) attempt went out by ``route``."""
        entry.attempt += 1
        entry.route, entry.retry_at, entry.why = route, retry_at, ""
        entry.attempts[entry.attempt] = Attempt(route)
        if entry.attempt:
            self._retried += 1

    def find(self, batch_id: BatchId) -> Entry | None:
        """The open batch of this id, or None when it has ended or is not ours."""
        return self._open.get(batch_id.seq) if self.knows(batch_id) else None

    def knows(self, batch_id: BatchId) -> bool:
        """Whether a batch of this id was ever submitted here, under whatever epoch."""
        epoch, seq = batch_id
        return seq < (self._next_seq if epoch == self.epoch else self._ends.get(epoch, 0))

    def deliver(self, batch_id: BatchId) -> Entry | None:
        """Count a result. None when the batch had one already: a duplicate, counted as such."""
        entry = self.find(batch_id)
        if entry is None:
            self.count_duplicate()
            return None
        self._close(entry)
        self._delivered += 1
        return entry

    def count_duplicate(self) -> None:
        """Count what came for a batch, or for a token of one, that was there already."""
        self._duplicates += 1

    def kill(self, entry: Entry, reason: DeathReason) -> DeathReason:
        """Give a batch up."""
        self._close(entry)
        self._dead += 1
        return reason

    def _close(self, entry: Entry) -> None:
        del self._open[entry.batch_id.seq]
        self._waiting.pop(entry.batch_id.seq, None)

    def due(self, now: float) -> list[Entry]:
        """Batches in flight whose attempt has had its time, oldest first."""
        return [entry for entry in self._open.values() if entry.retry_at <= now]

    def holding(self, batch: Batch) -> Entry | None:
        """The open entry of this very batch."""
        return next((entry for entry in self._open.values() if entry.batch is batch), None)

    def open_entries(self) -> list[Entry]:
        """All batches in flight, oldest first."""
        return [e for seq, e in self._open.items() if seq not in self._waiting]

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
        """How many batches are open, those apart that wait to be admitted again."""
        return len(self._open) - len(self._waiting)

    @property
    def is_settled(self) -> bool:
        """Whether no batch is open."""
        return not self._open

    def counts(self, finished: bool = False) -> LedgerCounts:
        """The ledger to show. After the end, a batch that is still open is lost."""
        left = len(self._open)
        return LedgerCounts(
            submitted=self._submitted,
            delivered=self._delivered,
            in_flight=0 if finished else left,
            retried=self._retried,
            duplicates_dropped=self._duplicates,
            dead=self._dead,
            lost=self._submitted - self._delivered - self._dead - (0 if finished else left),
        )
