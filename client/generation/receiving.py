"""What a token means for a language model's batch: it goes on, or ends."""

import logging
import time
from collections import deque

import numpy as np

from broker.reporter import EventReporter
from client.acceptance import accept_result
from client.batch import Batch, BatchResult, Stop, Tokens
from client.feed import FeedWatch
from client.generation.deadlines import note_gap, note_tokens
from client.generation.transcript import Column
from client.ledger import Entry, Ledger
from client.record import Settling
from client.sending import Sender
from contract.activation import Hop
from contract.decoder import FINISHED, IDS, Finish, Step
from contract.errors import WireFormatError
from contract.plan import Plan, TokenInput
from contract.status import EventKind
from contract.tensor_spec import Tensors

MAX_EARLY_STOPS = 64
"""Of batches that are not open: one that waits for room, and those that have ended meanwhile, which
nothing tells apart. What is forgotten is only computed for nobody."""

log = logging.getLogger(__name__)


class TokenReceiver:
    """What of a pipeline receives tokens. Owned by the pipeline's thread."""

    def __init__(
        self,
        client: str,
        watch: FeedWatch,
        ledger: Ledger,
        settling: Settling,
        sender: Sender,
        reporter: EventReporter,
    ) -> None:
        self._client, self._watch, self._ledger = client, watch, ledger
        self._settling, self._sender, self._reporter = settling, sender, reporter
        self._early_stops: deque[Stop] = deque(maxlen=MAX_EARLY_STOPS)
        self._ended: deque[Batch] = deque(maxlen=MAX_EARLY_STOPS)  # a stop may still be on its way

    def on_result(self, payload: bytes, sender: str | None) -> None:
        """A token of each row of a batch, by some attempt of it.

        Raises:
            WireFormatError: it is not acceptable.
        """
        feed = self._watch.feed
        header, tensors = accept_result(payload, sender, self._client, feed, self._ledger)
        position = Step.of(dict(header.scalars)).position
        token_ids, finish = read_tokens(feed.plan, position, tensors)
        entry = self._ledger.find(header.batch_id)
        if entry is None or entry.generation is None:
            self._ledger.count_duplicate()  # it was stopped, or another attempt has ended it
            return
        transcript, now = entry.generation.transcript, time.monotonic()
        is_first = not transcript.has_tokens
        taken = transcript.take(header.attempt, position, token_ids, finish)
        if taken.is_duplicate:
            self._ledger.count_duplicate()
        if taken.near_ties:
            self._on_near_tie(entry, header.attempt, position, taken.near_ties)
        if taken.is_ahead:
            note_gap(entry, header.attempt, self._sender.active_s)
        if taken.columns or taken.is_duplicate:
            is_new = bool(taken.columns)
            note_tokens(entry, header.attempt, feed, self._sender.active_s, now, is_new=is_new)
        if not taken.columns:
            return
        # Whatever stood against the batch is not its fault: the same tokens have now passed.
        entry.deaths = 0
        entry.refusals.clear()
        self._note_time(entry, is_first, header.trace, sum(map(_count, taken.columns)), now)
        for column in taken.columns:
            hops = header.trace if column.position == position else ()
            self._settling.end(Tokens(entry.batch_id, entry.batch, header.attempt, *column, hops))
        if transcript.is_over:
            self._end(entry, header.attempt, now)

    def _note_time(
        self, entry: Entry, is_first: bool, hops: tuple[Hop, ...], tokens: int, now: float
    ) -> None:
        feed = self._watch.feed
        feed.budget.earn(now, delivered=1)
        feed.meter.add_step(hops, tokens)
        if is_first:
            feed.meter.add_first_token((now - entry.submitted_at) * 1000)

    def _on_near_tie(self, entry: Entry, attempt: int, position: int, rows: int) -> None:
        self._watch.feed.meter.add_near_ties(rows)
        log.info(
            "batch %s, position %d: attempt %d chose another token in %d of its rows; the first "
            "to come counts",
            entry.batch_id,
            position,
            attempt,
            rows,
        )
        if attempt == entry.attempt:  # the one that lives: it goes on with another text
            self._sender.send_this_now(entry, "it has chosen another token than one before it")

    def on_stop(self, stop: Stop) -> None:
        """Nobody wants these rows any more; without any that is wanted, the batch ends."""
        entry = self._ledger.holding(stop.batch)
        if entry is None or entry.generation is None:
            if not any(stop.batch is ended for ended in self._ended):
                self._early_stops.append(stop)  # it has not begun
            return
        entry.generation.transcript.stop(stop.rows)
        if entry.generation.transcript.is_over:
            self._end(entry, entry.attempt, time.monotonic())

    def stopped_early(self, batch: Batch) -> tuple[int, ...]:
        """The rows that nobody wanted any more before their batch began."""
        rows = set[int]()
        for stop in self._early_stops:
            if stop.batch is batch:
                rows.update(range(batch.images) if stop.rows is None else stop.rows)
        others = (stop for stop in self._early_stops if stop.batch is not batch)
        self._early_stops = deque(others, MAX_EARLY_STOPS)
        return tuple(sorted(rows))

    def end_unsent(self, batch: Batch) -> None:
        """End a batch that would begin now; nothing of it is sent."""
        entry = self._ledger.submit(batch, time.monotonic())
        self._ledger.deliver(entry.batch_id)
        self._settling.end(BatchResult(entry.batch_id, batch, outputs={}, latency_ms=0, attempt=0))

    def release_all(self) -> None:
        """Nobody wants anything any more."""
        for entry in self._ledger.open_entries():
            self._sender.release(entry)

    def _end(self, entry: Entry, attempt: int, now: float) -> None:
        assert entry.generation is not None
        self._sender.release(entry)
        self._ledger.deliver(entry.batch_id)
        feed = self._watch.feed
        result = BatchResult(
            batch_id=entry.batch_id,
            batch=entry.batch,
            outputs={},
            latency_ms=(now - entry.submitted_at) * 1000,
            attempt=attempt,
            route=entry.attempts[attempt].route,
        )
        feed.meter.add(result)
        self._ended.append(entry.batch)
        self._settling.end(result)
        if entry.generation.transcript.near_ties:
            self._reporter.report(
                EventKind.BATCH_RETRIED,
                f"batch {entry.batch_id}: {entry.generation.transcript.near_ties} near ties "
                "between its attempts",
            )


def read_tokens(
    plan: Plan, position: int, tensors: Tensors
) -> tuple[tuple[int, ...], tuple[Finish, ...]]:
    """Token and finish of every row, from the tensors of a result of the right dtypes and shapes.

    Raises:
        WireFormatError: not one token a row, one that the model does not know, or no position.
    """
    assert plan.decoding is not None
    assert isinstance(plan.model.input, TokenInput)
    ids, finished = tensors[IDS], tensors[FINISHED]
    if ids.shape[1] != 1:
        raise WireFormatError(f"{ids.shape[1]} tokens of each sequence, expected 1")
    if position >= plan.decoding.context_tokens:
        raise WireFormatError(
            f"a token at position {position}: this plan has {plan.decoding.context_tokens:,}"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= plan.model.input.vocabulary_size:
        raise WireFormatError("a token that the model does not know")
    if int(finished.max()) > max(Finish):
        raise WireFormatError(f"tensor `{FINISHED}`: {np.unique(finished).tolist()!r:.80}")
    return tuple(ids[:, 0].tolist()), tuple(Finish(int(why)) for why in finished.tolist())


def _count(column: Column) -> int:
    """Tokens that somebody gets."""
    return sum(token is not None for token in column.token_ids)
