"""Texts that are due at once go out as a device's queue has room for them. Pure."""

import numpy as np

from client.batch import Batch
from client.generation.deadlines import has_to_wait
from client.generation.progress import Generation
from client.generation.transcript import Transcript
from client.ledger import Entry, Ledger
from client.settings import MAX_PROMPTS_MESSAGES
from contract.decoder import Sampling

CHUNK = 4
HALF = CHUNK * (MAX_PROMPTS_MESSAGES // 2)
NOW = 100.0
ROUTE = ("pi-0", "pi-1")


def text(ledger: Ledger, tokens: int) -> Entry:
    entry = ledger.submit(Batch({}, ("a",)), 0.0)
    entry.generation = Generation(Transcript(np.zeros((1, tokens), np.int64), [Sampling()]))
    return entry


def send(ledger: Ledger, entry: Entry, retry_at: float) -> None:
    assert entry.generation is not None
    ledger.sent(entry, ROUTE, retry_at)
    entry.generation.begin(entry.attempt)
    entry.attempts[entry.attempt].sent_tokens = entry.generation.transcript.length


def waits(ledger: Ledger, entry: Entry) -> bool:
    return has_to_wait(entry, ledger.open_entries(), NOW, CHUNK)


def test_two_that_fill_the_queue_leave_the_third_waiting_until_one_has_a_token() -> None:
    ledger = Ledger(epoch=1)
    first, second, third = (text(ledger, HALF) for _ in range(3))
    for entry in (first, second, third):
        assert not waits(ledger, first), "nothing is under way"
        send(ledger, entry, NOW)  # lost since: all are due
    assert not waits(ledger, first), "what those have sent that are due is lost"
    send(ledger, first, NOW + 30)
    assert not waits(ledger, second)
    send(ledger, second, NOW + 30)
    assert waits(ledger, third)
    assert first.generation is not None
    first.generation.idle_attempts = 0  # it has its first token
    assert not waits(ledger, third)


def test_one_that_is_larger_than_the_bound_goes_alone_and_then_it_goes() -> None:
    ledger = Ledger(epoch=1)
    small, large = text(ledger, CHUNK), text(ledger, 3 * HALF)
    send(ledger, small, NOW + 30)
    send(ledger, large, NOW)
    assert waits(ledger, large)
    small.retry_at = NOW  # its deadline has passed, too
    assert not waits(ledger, large)


def test_images_never_wait() -> None:
    ledger = Ledger(epoch=1)
    send(ledger, text(ledger, 10 * HALF), NOW + 30)
    assert not waits(ledger, ledger.submit(Batch({}, ("a",)), 0.0))
