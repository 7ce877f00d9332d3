"""Two processes of one name: the younger one ends and the other stays, whatever the broker says."""

import threading
import time
from collections.abc import Iterator

import pytest

import broker.name_guard
from broker.connection import PahoConnection
from broker.embedded import EmbeddedBroker
from broker.name_guard import SAME_AGE_MS, SIGHTINGS, Greeting, NameGuard, Rivals
from broker.transport import AckToken, Callbacks, ConnectionSettings, Delivery
from contract.errors import BrokerError, NameTakenError
from tests.conftest import eventually

ME, OTHER = "1" * 16, "2" * 16


def greeting(connection: int, process: str = OTHER, age_ms: int = 0) -> Greeting:
    return Greeting(process=process, connection=connection, age_ms=age_ms)


def test_another_process_that_keeps_coming_back_beside_us_lives() -> None:
    rivals = Rivals(ME)
    verdicts = [rivals.note(greeting(2 + n), own_connection=1 + n) for n in range(SIGHTINGS)]
    assert verdicts == [False] * (SIGHTINGS - 1) + [True]


def test_what_a_dead_process_left_behind_is_of_no_rival() -> None:
    """All of it comes with one connection, or the same again with the next."""
    rivals = Rivals(ME)
    for number in range(2, 30):
        assert not rivals.note(greeting(number), own_connection=1)
    for own in range(2, 30):
        assert not rivals.note(greeting(29), own_connection=own)


def test_several_starts_that_died_are_no_rival_either() -> None:
    rivals = Rivals(ME)
    for number in range(100):
        assert not rivals.note(greeting(2, process=f"{number:016x}"), own_connection=number)
    assert len(rivals._others) <= broker.name_guard.OTHERS_REMEMBERED


@pytest.mark.parametrize("apart_ms", [0, 100, SAME_AGE_MS, SAME_AGE_MS + 3000, 3_600_000])
def test_of_two_exactly_one_ends(apart_ms: int) -> None:
    """Each hears of the other's age a little late."""
    for late_ms in (0, 300, 1500):
        old, young = Rivals(ME), Rivals(OTHER)
        age = 10_000
        old_ends = old.is_ours_to_end(greeting(5, OTHER, age), age + apart_ms + late_ms)
        young_ends = young.is_ours_to_end(greeting(5, ME, age + apart_ms), age + late_ms)
        assert old_ends != young_ends
        if apart_ms > SAME_AGE_MS:
            assert young_ends


class Process:
    """What a process of a name does, as far as its connection goes."""

    def __init__(self, running: EmbeddedBroker, name: str) -> None:
        self.heard: list[bytes] = []
        self.failed: list[BrokerError] = []
        guard = NameGuard(name, f"own/{name}")
        self.connection = PahoConnection(
            running.address,
            ConnectionSettings(name=name, connect_timeout_s=5),
            guard.wrap(Callbacks(self._hear, on_failed=self.failed.append)),
        )
        self.connection.open()
        self.connection.subscribe(f"own/{name}")
        guard.begin(self.connection)

    def _hear(self, delivery: Delivery) -> None:
        self.heard.append(delivery.payload)
        delivery.ack()

    def cut(self) -> None:
        sock = self.connection._client.socket()
        if sock is not None:
            sock.shutdown(2)


@pytest.fixture
def processes(own_broker: EmbeddedBroker) -> Iterator[object]:
    made: list[Process] = []

    def start(name: str) -> Process:
        made.append(Process(own_broker, name))
        return made[-1]

    yield start
    for process in made:
        process.connection.close()


@pytest.fixture
def fast_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PahoConnection,
        "_spread_reconnects",
        staticmethod(lambda client: client.reconnect_delay_set(0.2, 0.4)),
    )


def test_the_second_process_of_a_name_ends_and_the_first_stays(
    processes: object, monkeypatch: pytest.MonkeyPatch, fast_reconnects: None
) -> None:
    monkeypatch.setattr(broker.name_guard, "SAME_AGE_MS", 300)
    first = processes("pi-1")  # type: ignore[operator]
    time.sleep(2.5)  # so that it is the older one
    second = processes("pi-1")  # type: ignore[operator]
    eventually(lambda: second.failed or first.failed, "one of them ends", timeout_s=30)
    assert first.failed == []
    assert isinstance(second.failed[0], NameTakenError)
    assert "'pi-1'" in str(second.failed[0])
    second.connection.close()
    eventually(lambda: first.connection.is_connected, "the first one is back")
    count = first.connection.reconnects
    time.sleep(2.0)
    assert first.connection.reconnects == count
    assert first.heard == []  # its owner has heard no greeting


def test_a_connection_that_is_lost_again_and_again_is_no_rival(
    processes: object, fast_reconnects: None
) -> None:
    process = processes("pi-1")  # type: ignore[operator]
    for count in range(1, 9):
        process.cut()
        eventually(lambda c=count: process.connection.reconnects >= c, "it is back")
    time.sleep(0.5)
    assert process.failed == []
    assert process.heard == []


def test_a_start_after_a_death_among_reconnects_is_no_rival(
    processes: object, own_broker: EmbeddedBroker, fast_reconnects: None
) -> None:
    dead = processes("pi-1")  # type: ignore[operator]
    for count in range(1, 5):
        dead.cut()
        eventually(lambda c=count: dead.connection.reconnects >= c, "it is back")
    dead.connection._client._thread_terminate = True
    dead.cut()
    dead.connection._client.loop_stop()
    alive = processes("pi-1")  # type: ignore[operator]
    for count in range(1, 5):
        alive.cut()
        eventually(lambda c=count: alive.connection.reconnects >= c, "it is back")
    time.sleep(0.5)
    assert alive.failed == []


def test_a_greeting_is_acknowledged_after_a_while(
    processes: object, monkeypatch: pytest.MonkeyPatch, fast_reconnects: None
) -> None:
    """Else the receive maximum would be spent on greetings."""
    monkeypatch.setattr(broker.name_guard, "HELD_S", 0.2)
    acked = threading.Event()
    use = Delivery.ack

    def watched(delivery: Delivery) -> None:
        use(delivery)
        acked.set()

    monkeypatch.setattr(Delivery, "ack", watched)
    process = processes("pi-1")  # type: ignore[operator]
    process.cut()
    assert acked.wait(10)


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"hello", b'{"kind":"greeting"}', b"\xff" * 100, b" " * 10_000]
)
def test_what_is_no_greeting_goes_to_the_owner(payload: bytes) -> None:
    heard: list[bytes] = []
    callbacks = NameGuard("pi-1", "own/pi-1").wrap(Callbacks(lambda d: heard.append(d.payload)))
    callbacks.on_delivery(Delivery("own/pi-1", payload, 1, False, AckToken(lambda: None)))
    assert heard == [payload]


def test_of_our_own_greetings_one_at_most_is_held() -> None:
    """On a connection that breaks every second they would fill a stage's receive maximum."""
    acked: list[int] = []
    published: list[bytes] = []

    class Wire:
        def publish(self, _topic: str, payload: bytes) -> None:
            published.append(payload)

    guard = NameGuard("pi-1", "own/pi-1")
    callbacks = guard.wrap(Callbacks(Delivery.ack))
    callbacks.on_connected(False)
    guard.begin(Wire())  # type: ignore[arg-type]
    assert published == []  # the first connection takes nothing over
    for _ in range(4):
        callbacks.on_connected(True)
    for index, payload in enumerate(published):
        token = AckToken(lambda index=index: acked.append(index))  # type: ignore[misc]
        callbacks.on_delivery(Delivery("own/pi-1", payload, 1, False, token))
    assert acked == [0, 1, 2]
