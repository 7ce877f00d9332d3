"""A device answers whoever asks for the time, at once, and nothing that is no question."""

import time

import pytest

from broker.transport import AckToken, Delivery
from contract import topics
from contract.clock import MAX_CLOCK_BYTES, ClockAnswer, ClockRequest, parse_clock
from contract.errors import BrokerError
from contract.status import EventKind
from stage.clock_server import MAX_ANSWERS_PER_S, ClockServer
from stage.counters import StageCounters
from stage.inbox import StageInbox

TOPIC = topics.clock_topic("home", "pi-1", "client-a")
QUESTION = ClockRequest(number=7).model_dump_json().encode()


class Wire:
    """A connection that keeps what is published."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, int]] = []
        self.is_broken = False

    def publish(self, topic: str, payload: bytes, *, qos: int = 1) -> None:
        if self.is_broken:
            raise BrokerError("away")
        self.sent.append((topic, payload, qos))


class Yard:
    def __init__(self) -> None:
        self.wire, self.told, self.acked = Wire(), list[str](), 0
        self.counters = StageCounters()
        self.inbox = StageInbox("pi-1", self.counters, self._report)
        self.inbox.on_clock = ClockServer("home", "pi-1", self.wire).answer  # type: ignore[arg-type]

    def _report(self, kind: EventKind, detail: str) -> None:
        assert kind is EventKind.MESSAGE_REJECTED
        self.told.append(detail)

    def _ack(self) -> None:
        self.acked += 1

    def hear(self, payload: bytes = QUESTION, topic: str = TOPIC, retained: bool = False) -> None:
        self.inbox.hear(Delivery(topic, payload, 0, retained, AckToken(self._ack)))


def test_a_question_is_answered_with_the_time_to_who_asked() -> None:
    yard = Yard()
    before = time.time_ns() // 1000
    yard.hear()
    after = time.time_ns() // 1000
    [(topic, payload, qos)] = yard.wire.sent
    assert topic == topics.clock_topic("home", "client-a", "pi-1")
    assert qos == 0
    answer = parse_clock(payload)
    assert isinstance(answer, ClockAnswer)
    assert answer.number == 7
    assert before <= answer.received_us <= answer.sent_us <= after
    assert (yard.told, yard.acked, len(yard.inbox)) == ([], 1, 0)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "not about the time"),
        (b"x" * (MAX_CLOCK_BYTES + 1), "at most 512"),
        (b"[" * 500, "not about the time"),
        (b'{"kind":"clock_request","number":-1}', "not about the time"),
        (ClockAnswer(number=1, received_us=1, sent_us=1).model_dump_json().encode(), "an answer"),
    ],
)
def test_what_is_no_question_is_rejected(payload: bytes, words: str) -> None:
    yard = Yard()
    yard.hear(payload)
    assert yard.wire.sent == []
    assert words in yard.told[0]
    assert yard.counters.snapshot().rejected == yard.acked == 1


def test_a_retained_question_and_one_of_its_own_are_rejected() -> None:
    yard = Yard()
    yard.hear(retained=True)
    yard.hear(topic=topics.clock_topic("home", "pi-1", "pi-1"))
    assert yard.wire.sent == []
    assert "retained" in yard.told[0]
    assert "itself" in yard.told[1]


def test_a_flood_is_answered_for_a_second_s_worth_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard, now = Yard(), 100.0
    monkeypatch.setattr("stage.clock_server.time.monotonic", lambda: now)
    for _ in range(MAX_ANSWERS_PER_S + 50):
        yard.hear()
    assert len(yard.wire.sent) == MAX_ANSWERS_PER_S
    assert "in a second" in yard.told[-1]
    now = 101.0
    yard.hear()
    assert len(yard.wire.sent) == MAX_ANSWERS_PER_S + 1


def test_a_broker_that_is_away_keeps_nobody_from_the_rest() -> None:
    yard = Yard()
    yard.wire.is_broken = True
    yard.hear()
    assert (yard.told, yard.acked) == ([], 1)
