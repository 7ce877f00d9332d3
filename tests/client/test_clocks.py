"""How far another clock is ahead is found within half of a round trip, whoever answers what."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.clock_filter import DRIFT_PPM, FORGET_AFTER_US, KEPT, ClockFilter, Sample, sample
from client.clocks import INTERVAL_S, QUICK_ASKS, QUICK_INTERVAL_S, DeviceClocks
from client.steady_clock import SteadyClock
from contract.clock import MAX_CLOCK_BYTES, ClockAnswer, ClockRequest, parse_clock
from contract.errors import WireFormatError

AHEAD_US = 3_000_000
NOW = 1_800_000_000_000_000


def exchange(there_us: int, back_us: int, at_us: int = NOW, ahead_us: int = AHEAD_US) -> Sample:
    """A question that takes so long to a device and back; 30 us pass there."""
    read = at_us + there_us + ahead_us
    found = sample(at_us, read, read + 30, at_us + there_us + 30 + back_us)
    assert found is not None
    return found


@given(there=st.integers(0, 10**7), back=st.integers(0, 10**7), ahead=st.integers(-(2**60), 2**60))
def test_an_offset_is_wrong_by_half_the_round_trip_at_most(
    there: int, back: int, ahead: int
) -> None:
    found = exchange(there, back, ahead_us=ahead)
    assert found.round_trip_us == there + back
    assert abs(found.offset_us - ahead) <= found.round_trip_us / 2 + 1  # 1: it was rounded


def test_three_seconds_are_found_with_asymmetric_delays_while_the_clock_drifts() -> None:
    """Queues make one way slow at random; the crystal is as bad as is allowed for."""
    dice, clock = Random(5), ClockFilter()
    widest = 0
    for second in range(0, 400, 10):
        at_us = NOW + second * 1_000_000
        ahead_us = AHEAD_US + second * DRIFT_PPM
        there, back = 200 + dice.choice((0, 50, 20_000)), 250 + dice.choice((0, 90, 5_000))
        clock.add(exchange(there, back, at_us, ahead_us))
        for later_s in (1, 9):
            best = clock.best(at_us + later_s * 1_000_000)
            assert best is not None
            offset_us, round_trip_us = best
            true_us = ahead_us + later_s * DRIFT_PPM
            assert abs(offset_us - true_us) <= round_trip_us / 2 + 2
            widest = max(widest, round_trip_us if second > 100 else 0)
    assert widest < 10_000  # one of eight questions was lucky, and the others did not count


def test_the_shortest_round_trip_of_the_last_eight_counts() -> None:
    clock = ClockFilter()
    lucky = exchange(100, 100)
    clock.add(lucky)
    for _ in range(KEPT - 1):
        clock.add(exchange(100, 9000))
    assert clock.best(NOW) == (lucky.offset_us, lucky.bound_us(NOW))
    clock.add(exchange(100, 9000))
    offset_us, round_trip_us = clock.best(NOW) or (0, 0)
    assert round_trip_us >= 9000
    assert abs(offset_us - AHEAD_US) <= round_trip_us / 2


def test_a_clock_that_was_set_is_believed_at_once() -> None:
    clock = ClockFilter()
    for _ in range(KEPT):
        clock.add(exchange(100, 100))
    clock.add(exchange(5000, 4000, ahead_us=AHEAD_US + 3_600_000_000))
    offset_us, _ = clock.best(NOW) or (0, 0)
    assert abs(offset_us - AHEAD_US - 3_600_000_000) <= 4500


def test_what_is_old_is_forgotten_and_less_certain_before() -> None:
    clock = ClockFilter()
    clock.add(exchange(100, 100))
    _, fresh = clock.best(NOW) or (0, 0)
    _, old = clock.best(NOW + 60_000_000) or (0, 0)
    assert old - fresh == pytest.approx(2 * 60 * DRIFT_PPM, abs=2)
    assert clock.best(NOW + FORGET_AFTER_US + 1_000_000) is None
    assert ClockFilter().best(NOW) is None


@pytest.mark.parametrize(
    "times",
    [
        pytest.param((0, 10, 9, 100), id="written before it was read"),
        pytest.param((0, 10, 200, 100), id="longer there than it was away"),
        pytest.param((100, 10, 10, 0), id="back before it left"),
    ],
)
def test_times_that_cannot_be_tell_nothing(times: tuple[int, int, int, int]) -> None:
    assert sample(*times) is None


class Room:
    """A client and devices in the test's hands: a clock to turn, and the questions that it asks."""

    def __init__(self, *devices: str) -> None:
        self.now_us = NOW
        self.asked: list[tuple[str, ClockRequest]] = []
        self.clocks = DeviceClocks(lambda: self.now_us)
        self.clocks.follow(devices)

    def ask(self, now_s: float) -> int:
        """How many were asked."""
        before = len(self.asked)
        self.clocks.ask(now_s, self._send)
        return len(self.asked) - before

    def _send(self, device: str, payload: bytes) -> None:
        question = parse_clock(payload)
        assert isinstance(question, ClockRequest)
        self.asked.append((device, question))

    def answer(self, number: int, read_us: int, written_us: int) -> bytes:
        answer = ClockAnswer(number=number, received_us=read_us, sent_us=written_us)
        return answer.model_dump_json().encode()

    def known(self) -> dict[str, int]:
        return {offset.device: offset.offset_us for offset in self.clocks.offsets()}


def test_devices_are_asked_a_few_times_at_the_start_and_then_seldom() -> None:
    room = Room("pi-0", "pi-1")
    times = [tick * 0.05 for tick in range(int((INTERVAL_S * 2 + 3) / 0.05))]
    asked_at = [now for now in times if room.ask(now)]
    quick = [index * QUICK_INTERVAL_S for index in range(QUICK_ASKS)]
    assert asked_at[:QUICK_ASKS] == pytest.approx(quick, abs=0.06)
    last = quick[-1]
    assert asked_at[QUICK_ASKS:] == pytest.approx([last + INTERVAL_S, last + 2 * INTERVAL_S], abs=1)
    assert {device for device, _ in room.asked} == {"pi-0", "pi-1"}
    assert len(room.asked) == 2 * len(asked_at)
    numbers = [question.number for _, question in room.asked]
    assert len(set(numbers)) == len(numbers)


def test_an_answer_counts_once_and_only_for_its_question() -> None:
    room = Room("pi-0")
    room.ask(0.0)
    _, question = room.asked[0]
    read = NOW + AHEAD_US + 100
    wrong = room.answer(question.number ^ 1, read + 10**9, read + 10**9)
    assert room.clocks.hear("pi-0", wrong, NOW + 230)
    assert room.known() == {}
    right = room.answer(question.number, read, read + 30)
    assert room.clocks.hear("pi-0", right, NOW + 230)
    assert room.known() == {"pi-0": AHEAD_US}
    again = room.answer(question.number, read + 10**9, read + 10**9)
    assert not room.clocks.hear("pi-0", again, NOW + 240)  # it was not asked
    assert room.known() == {"pi-0": AHEAD_US}


def test_a_late_answer_to_an_earlier_question_tells_nothing() -> None:
    room = Room("pi-0")
    room.ask(0.0)
    room.now_us += 250_000
    room.ask(QUICK_INTERVAL_S)
    (_, first), (_, second) = room.asked
    late = room.answer(first.number, NOW + AHEAD_US + 100, NOW + AHEAD_US + 130)
    assert room.clocks.hear("pi-0", late, room.now_us + 50)
    assert room.known() == {}
    read = room.now_us + AHEAD_US + 100
    assert room.clocks.hear("pi-0", room.answer(second.number, read, read), room.now_us + 200)
    assert room.known() == {"pi-0": AHEAD_US}


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[" * 400, id="deep JSON"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b" " * (MAX_CLOCK_BYTES + 1), id="too long"),
        pytest.param(ClockRequest(number=1).model_dump_json().encode(), id="a question"),
        pytest.param(
            b'{"kind":"clock_answer","number":1,"received_us":' + b"9" * 300 + b',"sent_us":1}',
            id="a time without end",
        ),
        pytest.param(
            b'{"kind":"clock_answer","number":1,"received_us":-1,"sent_us":1}', id="before 1970"
        ),
    ],
)
def test_nonsense_is_not_taken_and_raises_nothing(payload: bytes) -> None:
    room = Room("pi-0")
    room.ask(0.0)
    assert not room.clocks.hear("pi-0", payload, NOW)
    assert room.known() == {}


def test_a_message_about_the_time_is_read_back_and_anything_else_refused() -> None:
    for message in (ClockRequest(number=5), ClockAnswer(number=5, received_us=1, sent_us=2)):
        assert parse_clock(message.model_dump_json().encode()) == message
    for payload in (b"", b"{}", b'{"kind":"clock"}', b" " * (MAX_CLOCK_BYTES + 1)):
        with pytest.raises(WireFormatError):
            parse_clock(payload)


def test_who_was_not_asked_tells_nothing_and_costs_nothing() -> None:
    room = Room("pi-0")
    room.ask(0.0)
    _, question = room.asked[0]
    for stranger in ("pi-9", None):
        assert not room.clocks.hear(stranger, room.answer(question.number, NOW, NOW), NOW + 1)
    assert room.known() == {}


def test_a_lie_stays_a_number_of_its_own_device() -> None:
    """The largest that the format has: nothing overflows, and the other device's is right."""
    room = Room("pi-0", "pi-1")
    room.ask(0.0)
    numbers = {device: question.number for device, question in room.asked}
    huge = 2**63 - 1
    assert room.clocks.hear("pi-0", room.answer(numbers["pi-0"], huge, huge), NOW + 200)
    read = NOW + AHEAD_US + 100
    assert room.clocks.hear("pi-1", room.answer(numbers["pi-1"], read, read), NOW + 200)
    assert room.known() == {"pi-0": huge - NOW - 100, "pi-1": AHEAD_US}


def test_only_devices_of_the_plan_are_remembered() -> None:
    room = Room("pi-0", "pi-1")
    room.ask(0.0)
    for device, question in list(room.asked):
        read = NOW + AHEAD_US + 100
        room.clocks.hear(device, room.answer(question.number, read, read), NOW + 200)
    room.clocks.follow(["pi-1", "pi-2"])
    assert room.known() == {"pi-1": AHEAD_US}
    assert room.ask(0.1) == 1  # the new one; the old one's turn has not come
    assert room.asked[-1][0] == "pi-2"


def test_the_client_s_clock_does_not_step_with_the_wall_s(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock(wall_us=NOW, monotonic_s=100.0)
    assert clock.at_us(100.25) == NOW + 250_000
    before = SteadyClock()
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert before.now_us() > NOW // 2
    assert before.now_us() >= before.at_us(0.0)
