"""A mailbox keeps what it must and no more than it can."""

import threading

from broker.mailbox import MAX_WAITING, Mailbox
from broker.transport import AckToken, Delivery


def delivery(payload: bytes = b"x", qos: int = 1, acked: list[bytes] | None = None) -> Delivery:
    token = AckToken(lambda: None if acked is None else acked.append(payload))
    return Delivery("a/b", payload, qos, False, token)


def test_what_comes_is_handed_out_in_order_and_nothing_otherwise() -> None:
    box = Mailbox(10)
    for number in range(3):
        box.put(delivery(bytes([number])))
    assert [box.get(0.1).payload for _ in range(3)] == [b"\0", b"\1", b"\2"]  # type: ignore[union-attr]
    assert box.get(0.01) is None


def test_a_flood_at_qos_0_is_dropped_and_what_the_broker_keeps_for_us_is_not() -> None:
    box = Mailbox(10)
    for _ in range(10 * MAX_WAITING):
        box.put(delivery(qos=0))
    assert box.dropped == 9 * MAX_WAITING
    box.put(delivery(b"kept", qos=1))
    for _ in range(MAX_WAITING):
        assert box.get(0.1) is not None
    last = box.get(0.1)
    assert last is not None
    assert last.payload == b"kept"


def test_what_is_larger_than_anything_for_us_is_dropped_and_the_broker_may_forget_it() -> None:
    box, acked = Mailbox(10), list[bytes]()
    box.put(delivery(b"x" * 11, acked=acked))
    assert (box.dropped, acked, box.get(0.01)) == (1, [b"x" * 11], None)


def test_the_network_thread_never_waits() -> None:
    box = Mailbox(10)
    thread = threading.Thread(target=lambda: [box.put(delivery(qos=q)) for q in (0, 1) * 5000])
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive()
