"""What a broker has dropped in silence is noticed, each message once."""

import pytest

from broker.drop_watch import DropCounter, watch_drops
from broker.transport import AckToken, Callbacks, Delivery
from contract import topics


def totals(*values: bytes, retained: bool = True) -> list[int]:
    counter = DropCounter()
    return [counter.take(value, retained and not i) for i, value in enumerate(values)]


def test_what_was_dropped_before_us_is_the_past() -> None:
    assert totals(b"100", b"100", b"107", b"107", b"108") == [0, 0, 7, 0, 1]


def test_a_broker_that_has_just_begun_to_count_has_no_past() -> None:
    assert totals(b"3", b"4", retained=False) == [3, 1]


def test_a_broker_that_was_started_again_counts_anew() -> None:
    assert totals(b"100", b"0", b"2", b"1") == [0, 0, 2, 1]


@pytest.mark.parametrize("payload", [b"", b"-1", b"1.5", b"many", b"1" * 21, b"\xff", "٣".encode()])
def test_what_is_no_total_counts_nothing(payload: bytes) -> None:
    assert totals(b"5", payload, b"6") == [0, 0, 1]


def test_the_owner_hears_everything_but_the_counter() -> None:
    heard: list[str] = []
    acked: list[str] = []
    told: list[int] = []
    callbacks = watch_drops(Callbacks(lambda d: heard.append(d.topic)), told.append)

    def deliver(topic: str, payload: bytes) -> None:
        token = AckToken(lambda: acked.append(topic))
        callbacks.on_delivery(Delivery(topic, payload, 1, False, token))

    deliver("a/b", b"1")
    for total in (b"0", b"4", b"4"):
        deliver(topics.BROKER_DROPPED, total)
    assert heard == ["a/b"]
    assert told == [4]
    assert acked == [topics.BROKER_DROPPED] * 3
