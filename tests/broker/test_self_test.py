"""A process that its broker keeps something from ends at once, and says on which topics."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.embedded
import broker.self_test
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.memory import MemoryBroker
from broker.mosquitto_conf import MosquittoSettings, render_mosquitto_conf
from broker.self_test import SelfTest, check_packet_size, clock_complaint
from broker.transport import Callbacks, Connect, Connection, ConnectionSettings, Delivery
from contract.errors import MessageTooLargeError, NotAuthorisedError
from contract.placement import EdgeBroker
from contract.plan import Plan
from contract.version import RELEASED_UNIX_S
from tests.conftest import let_mosquitto_in
from tests.tiny import make_tiny_plan

OWN = ("dev/pi-1/in", "dev/pi-1/command")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.self_test, "PATIENCE_S", 0.6)
    monkeypatch.setattr(broker.self_test, "REPEAT_S", 0.2)


def opened(
    connect: Connect, test: SelfTest, heard: list[Delivery] | None = None, name: str = "pi-1"
) -> Connection:
    callbacks = Callbacks(heard.append if heard is not None else Delivery.ack)
    connection = connect(ConnectionSettings(name=name, receive_maximum=3), test.wrap(callbacks))
    for topic in OWN:
        connection.subscribe(topic)
    return connection


class FilteringBroker:
    """Mosquitto with an access control file that the test writes; it grants every subscription."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *rights: str) -> None:
        acl = folder / "acl"
        acl.write_text("".join(f"topic {right}\n" for right in rights))
        acl.chmod(0o644)
        let_mosquitto_in(folder)

        def render(settings: MosquittoSettings) -> str:
            return render_mosquitto_conf(settings) + f"acl_file {acl}\n"

        monkeypatch.setattr(broker.embedded, "render_mosquitto_conf", render)
        self.embedded = EmbeddedBroker()

    def connect(self) -> Connector:
        return Connector(self.embedded.address)


@pytest.fixture
def filtering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator["type[FilteringBroker] | object"]:
    made: list[FilteringBroker] = []

    def make(*rights: str) -> FilteringBroker:
        made.append(FilteringBroker(tmp_path, monkeypatch, *rights))
        return made[-1]

    yield make
    for each in made:
        each.embedded.stop()


@pytest.mark.parametrize(
    ("rights", "missing"),
    [
        (("write dev/#", "read dev/pi-1/in"), ["dev/pi-1/command"]),
        (("write dev/#", "read dev/pi-1/command"), ["dev/pi-1/in"]),
        (("read dev/#", "write dev/pi-1/in"), ["dev/pi-1/command"]),
        (("write dev/#",), list(OWN)),
    ],
)
def test_a_right_that_is_missing_at_the_broker_is_named(
    filtering: object, rights: tuple[str, ...], missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As long as a busy broker may take for the topic that is there.
    monkeypatch.setattr(broker.self_test, "PATIENCE_S", 3.0)
    running = filtering(*rights)  # type: ignore[operator]
    test = SelfTest("pi-1", OWN)
    connection = opened(running.connect(), test)
    with pytest.raises(NotAuthorisedError, match="deploy render") as caught:
        test.run(connection)
    for topic in OWN:
        assert (topic in str(caught.value)) == (topic in missing)
    connection.close(forget_session=True)


def test_all_rights_are_enough(filtering: object) -> None:
    running = filtering("readwrite dev/#")  # type: ignore[operator]
    test, heard = SelfTest("pi-1", OWN), list[Delivery]()
    connection = opened(running.connect(), test, heard)
    test.run(connection)
    connection.publish(OWN[0], b"a batch").result(timeout=5)
    assert [delivery.payload for delivery in heard] == [b"a batch"]  # and nothing of the test
    connection.close(forget_session=True)


def test_batches_that_fill_the_receive_maximum_are_not_in_the_way(
    filtering: object,
) -> None:
    """A kept session delivers them first, and they are acknowledged only when the test is over."""
    running = filtering("readwrite dev/#")  # type: ignore[operator]
    first = opened(running.connect(), SelfTest("pi-1", OWN))
    first.close()
    sender = running.connect()(ConnectionSettings("sender"), Callbacks(Delivery.ack))
    for _ in range(10):
        sender.publish(OWN[0], b"a batch").result(timeout=5)
    test, heard = SelfTest("pi-1", OWN), list[Delivery]()
    connection = opened(running.connect(), test, heard)
    test.run(connection, timeout_s=8.0)
    assert len(heard) == 3
    connection.close(forget_session=True)
    sender.close(forget_session=True)


def test_the_end_of_the_process_ends_the_test() -> None:
    cancelled = threading.Event()
    cancelled.set()
    test = SelfTest("pi-1", OWN)
    connection = MemoryBroker().connect(ConnectionSettings("pi-1"), Callbacks(Delivery.ack))
    test.run(connection, cancelled=cancelled)  # without a verdict
    connection.close()


class Away:
    """A connection that is lost for a while: time without a broker does not count."""

    max_packet_bytes = None
    reconnects = 0

    def __init__(self, inner: Connection) -> None:
        self._inner, self.is_connected = inner, False

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


@pytest.mark.usefixtures("quick")
def test_a_broker_that_is_away_is_waited_for_and_is_no_verdict() -> None:
    test = SelfTest("pi-1", OWN)
    away = Away(opened(MemoryBroker().connect, test))
    waiting = threading.Thread(target=test.run, args=(away,))
    waiting.start()
    time.sleep(1.0)  # longer than the patience
    assert waiting.is_alive()
    away.is_connected = True
    waiting.join(timeout=5)
    assert not waiting.is_alive()
    lost = SelfTest("pi-2", OWN)
    gone = Away(MemoryBroker().connect(ConnectionSettings("pi-2"), Callbacks(Delivery.ack)))
    lost.run(gone, timeout_s=0.3)  # type: ignore[arg-type]
    for connection in (away, gone):
        connection.close()  # type: ignore[operator]


@pytest.mark.usefixtures("quick")
def test_the_answer_to_an_earlier_start_does_not_count() -> None:
    memory = MemoryBroker()
    other, test = SelfTest("pi-1", OWN), SelfTest("pi-1", OWN)
    connection = opened(memory.connect, test)
    for topic in OWN:
        connection.publish(topic, other._message, qos=0)
    assert test._missing == set(OWN)
    test.run(connection)
    assert test._missing == set()
    connection.close()


def test_a_clock_of_1970_is_told_and_a_right_one_is_not() -> None:
    told = clock_complaint(12.0)
    assert told is not None
    assert "1970-01-01" in told
    assert "timedatectl" in told
    assert clock_complaint(RELEASED_UNIX_S) is None
    assert clock_complaint(time.time()) is None
    assert clock_complaint(time.time() + 1e9) is None  # nobody knows that it is wrong


def test_a_connection_is_made_with_a_wrong_clock_and_warns_of_it(
    shared_broker: EmbeddedBroker,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("broker.connection.clock_complaint", lambda _now: clock_complaint(0.0))
    connection = Connector(shared_broker.address)(
        ConnectionSettings(unique), Callbacks(Delivery.ack)
    )
    assert connection.is_connected
    assert "clock" in caplog.text
    connection.close(forget_session=True)


def test_a_plan_whose_batches_the_broker_would_not_take_is_refused(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path, batch_size=100)
    tensor_bytes = 100 * 16 * 4  # the largest activation
    check_packet_size(plan, None)
    check_packet_size(plan, tensor_bytes)
    with pytest.raises(
        MessageTooLargeError, match=r"plan tiny: 6,400 bytes.* 6,399.*smaller batch"
    ):
        check_packet_size(plan, tensor_bytes - 1)
    check_packet_size(with_an_edge_elsewhere(plan), 10)  # another broker carries it


def with_an_edge_elsewhere(plan: Plan) -> Plan:
    broker_of_edge = EdgeBroker(edge=1, address="other:1883")
    return plan.model_copy(update={"edge_brokers": (broker_of_edge,)})
