"""A result or a refusal counts only from who had the batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.acceptance import accept_result, check_nack
from client.batch import Batch
from client.feed import Feed, FeedWatch
from client.ledger import Attempt, Ledger
from contract.activation import BatchId, Header, encode
from contract.errors import WireFormatError
from contract.nack import Nack, NackReason
from tests.tiny import CLASSES, make_tiny_plan

ROUTE = ("pi-0", "pi-1", "pi-2")
LOGITS = {"logits": np.zeros((2, CLASSES), np.float32)}


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    watch = FeedWatch("me", None)
    watch.take_plan(make_tiny_plan(tmp_path), 0.0)
    return watch.feed


@pytest.fixture
def ledger() -> Ledger:
    """One batch of two images, sent once by the plan's route."""
    ledger = Ledger(epoch=7)
    ledger.sent(ledger.submit(Batch({}, ("a", "b")), 0.0), ROUTE, 30.0)
    return ledger


def header(feed: Feed, **changes: object) -> Header:
    good = Header(
        plan_id=feed.plan.plan_id,
        batch_id=BatchId(7, 0),
        attempt=0,
        low=0,
        stage_index=3,
        route=ROUTE,
        client="me",
        sent_us=1,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def test_the_answer_of_the_last_stage_is_accepted(feed: Feed, ledger: Ledger) -> None:
    accepted = accept_result(encode(header(feed), LOGITS), "pi-2", "me", feed, ledger)
    assert accepted.header.batch_id == BatchId(7, 0)


def test_the_answer_of_a_device_that_served_it_when_it_was_sent_is_accepted(
    feed: Feed, ledger: Ledger
) -> None:
    """The plan was placed anew while the batch was on its way."""
    [entry] = ledger.open_entries()
    entry.route = old = ("pi-0", "pi-1", "pi-9")
    entry.attempts[0] = Attempt(old)
    accept_result(encode(header(feed, route=old), LOGITS), "pi-9", "me", feed, ledger)


@pytest.mark.parametrize(
    ("changes", "sender"),
    [
        ({}, "evil"),
        ({"route": ("pi-0", "pi-1", "evil")}, "evil"),
        ({"stage_index": 2}, "pi-2"),
        ({"client": "another"}, "pi-2"),
        ({"batch_id": BatchId(8, 0)}, "pi-2"),
        ({"batch_id": BatchId(7, 1)}, "pi-2"),
        ({"plan_id": "0" * 16}, "pi-2"),
        ({"codec": "float16"}, "pi-2"),
        ({"route": ("pi-0", "pi-9", "pi-2")}, "pi-2"),
        ({"attempt": 1}, "pi-2"),
    ],
    ids=[
        *("sender", "own route", "stage", "client", "epoch", "number", "plan", "codec"),
        *("route of another", "attempt never sent"),
    ],
)
def test_anything_else_is_not(
    feed: Feed, ledger: Ledger, changes: dict[str, object], sender: str
) -> None:
    with pytest.raises(WireFormatError):
        accept_result(encode(header(feed, **changes), LOGITS), sender, "me", feed, ledger)


def test_a_refusal_counts_only_from_a_device_on_the_route(ledger: Ledger) -> None:
    nack = Nack(
        plan_id="0" * 16,
        epoch=f"{7:016x}",
        seq=0,
        attempt=0,
        stage_index=1,
        route=ROUTE,
        device="pi-1",
        reason=NackReason.INVALID,
        detail="",
    )
    check_nack(nack, ledger)
    with pytest.raises(WireFormatError, match="evil"):
        check_nack(nack.model_copy(update={"device": "evil"}), ledger)
    with pytest.raises(WireFormatError, match="never sent"):
        check_nack(nack.model_copy(update={"attempt": 5}), ledger)
    check_nack(nack.model_copy(update={"device": "evil", "seq": 5}), ledger)  # counts nowhere


def test_a_refusal_that_somebody_else_provoked_does_not_count(ledger: Ledger) -> None:
    """A device of another route sent the batch's number to an honest one, which refused it."""
    for route in (("pi-9", "pi-1", "pi-2"), ("pi-0", "pi-1"), ()):
        nack = Nack(
            plan_id="0" * 16,
            epoch=f"{7:016x}",
            seq=0,
            attempt=0,
            stage_index=1,
            route=route,
            device="pi-1",
            reason=NackReason.INVALID,
            detail="",
        )
        with pytest.raises(WireFormatError):
            check_nack(nack, ledger)


def test_late_answers_and_refusals_of_earlier_attempts_count_by_their_own_routes(
    feed: Feed, ledger: Ledger
) -> None:
    [entry] = ledger.open_entries()
    ledger.sent(entry, ("pi-0", "pi-8", "pi-2"), 30.0)
    accept_result(encode(header(feed), LOGITS), "pi-2", "me", feed, ledger)
    second = header(feed, route=("pi-0", "pi-8", "pi-2"), attempt=1)
    accept_result(encode(second, LOGITS), "pi-2", "me", feed, ledger)
    with pytest.raises(WireFormatError, match="attempt 1"):
        accept_result(encode(header(feed, attempt=1), LOGITS), "pi-2", "me", feed, ledger)
