"""What a result, a refusal or a device's status means for a batch: it ends, or is sent again.

Who may say so is checked in `acceptance.py`; what has ended waits in `record.py` for its commit.
"""

import time

from broker.reporter import EventReporter
from client.acceptance import accept_result, check_nack
from client.batch import BatchResult, DeadBatch, DeathReason, NobodyThere
from client.deaths import Deaths
from client.feed import FeedWatch
from client.ledger import Entry, Ledger
from client.record import Record, Settling
from client.retry import MAX_REFUSALS
from client.sending import Sender
from client.steady_clock import SteadyClock
from contract.nack import POISONOUS, Nack, NackReason
from contract.status import DeviceState, DeviceStatus, EventKind

MAX_HASTY_ATTEMPTS = 2
"""Lost caches are computed anew at once, unless they are lost again before any token has come: then
more sequences want room than there is."""


class Receiver:
    """What of a pipeline receives. Owned by the pipeline's thread."""

    def __init__(
        self,
        client: str,
        watch: FeedWatch,
        ledger: Ledger,
        record: Record,
        settling: Settling,
        sender: Sender,
        reporter: EventReporter,
        clock: SteadyClock,
    ) -> None:
        """``clock``: what a result's times are told by."""
        self._client, self._watch, self._ledger, self._clock = client, watch, ledger, clock
        self._record, self._settling = record, settling
        self._sender, self._reporter = sender, reporter
        self._deaths = Deaths(ledger)

    def on_result(self, payload: bytes, sender: str | None) -> None:
        """A result: the first one of a batch ends it.

        Raises:
            WireFormatError: it is not acceptable.
        """
        feed = self._watch.feed
        header, outputs = accept_result(payload, sender, self._client, feed, self._ledger)
        feed.router.end((header.batch_id, header.attempt))
        entry = self._ledger.deliver(header.batch_id)
        if entry is None:
            return
        now = time.monotonic()
        feed.budget.earn(now, delivered=1)
        # An attempt of an earlier start may have the number of one of ours.
        is_ours = header.batch_id == entry.batch_id
        sent = entry.attempts.get(header.attempt) if is_ours else None
        result = BatchResult(
            batch_id=header.batch_id,
            batch=entry.batch,
            outputs=outputs,
            latency_ms=(now - entry.submitted_at) * 1000,
            attempt=header.attempt,
            hops=header.trace,
            route=header.route,
            queued_us=0 if sent is None else self._clock.at_us(entry.submitted_at),
            sent_us=0 if sent is None else self._clock.at_us(sent.published_at),
            received_us=0 if sent is None else self._clock.at_us(now),
            bytes_in=entry.message_bytes,
            bytes_out=len(payload),
        )
        feed.meter.add(result)
        if sent is not None:
            feed.attempts.add(sent.taken_s(self._sender.active_s, now))
        self._record.done(entry, payload, result.latency_ms)
        self._settling.end(result)

    def on_nack(self, nack: Nack) -> None:
        """A refusal: the batch is sent again, unless the fault lies in it once too often.

        Raises:
            WireFormatError: it is not acceptable.
        """
        check_nack(nack, self._ledger)
        entry = self._ledger.find(nack.batch_id)
        self._watch.feed.router.end((nack.batch_id, nack.attempt))
        if entry is None or not entry.is_at(nack.batch_id, nack.attempt):
            return  # a late refusal of an attempt that another has replaced
        detail = f"{nack.device} refused it ({nack.reason}): {nack.detail}"
        if nack.reason in POISONOUS:
            entry.refusals.append(detail)
            if self._is_poison(entry, detail):
                return
        generation = entry.generation
        is_new = generation is not None and generation.idle_attempts < MAX_HASTY_ATTEMPTS
        if nack.reason is NackReason.CACHE_LOST and is_new:
            self._sender.send_this_now(entry, detail)
        else:
            self._sender.send_again_later(entry, detail)

    def on_nobody_there(self, what: NobodyThere) -> None:
        """A hint that the first device is gone; its will may still be on the way."""
        entry = self._ledger.find(what.batch_id)
        if entry is not None and entry.is_at(what.batch_id, what.attempt):
            self._watch.feed.router.end((what.batch_id, what.attempt))
            self._sender.send_again_later(entry, f"nobody listens as {entry.route[0]}")

    def on_status(self, status: DeviceStatus) -> None:
        """A device came, changed or went. What a lost one had goes another way at once."""
        device = status.device
        in_hand = self._watch.feed.router.in_hand(device) if self._watch.is_known else []
        is_online = status.state is DeviceState.ONLINE
        accused = self._deaths.back(device, status.boot) if is_online else []
        lost = self._watch.take_status(status)
        if lost is not None:
            if status.state is DeviceState.OFFLINE or status.boot != lost.boot:
                accused += self._deaths.lost((device, lost.boot), in_hand)
            self._reporter.report(EventKind.DEVICE_LOST, f"device {device}: {status.state}")
            self._sender.send_again_now(f"{device} was lost", device)
        for entry in accused:
            if self._ledger.find(entry.batch_id) is entry:  # two deaths may accuse one batch
                self._is_poison(entry, "devices that had this batch in hand have died")

    def _is_poison(self, entry: Entry, detail: str) -> bool:
        """Give a batch up that engines have refused, or devices not survived, too often."""
        if entry.strikes < MAX_REFUSALS:
            return False
        self.give_up(entry, DeathReason.POISON, detail)
        return True

    def give_up(self, entry: Entry, reason: DeathReason, detail: str) -> None:
        """Declare a batch dead."""
        if entry.generation is not None:
            self._sender.release(entry)
        self._ledger.kill(entry, reason)
        self._record.dead(entry, reason, detail)
        self._settling.end(DeadBatch(entry.batch_id, entry.batch, reason, detail))
        self._reporter.report(EventKind.BATCH_DEAD, f"batch {entry.batch_id}: {reason}: {detail}")
