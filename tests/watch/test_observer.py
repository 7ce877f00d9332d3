"""The observer against a real Mosquitto: what it hears, and what it believes after a restart."""

import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.embedded
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.mosquitto_conf import MosquittoSettings, render_mosquitto_conf
from broker.transport import (
    BrokerAddress,
    Callbacks,
    Connect,
    Connection,
    ConnectionSettings,
    Delivery,
    Will,
)
from client.watch import state
from client.watch.observer import Observer
from contract import topics
from contract.errors import BrokerError, NotAuthorisedError
from contract.status import DeviceState
from tests.conftest import eventually, let_mosquitto_in
from tests.tiny import make_tiny_plan
from tests.watch.cluster import device_metrics, device_status

MANY = 50


class Device:
    """Says on every connection who it is, as an agent does."""

    def __init__(self, connect: Connect, cluster: str, name: str, boot: int = 1) -> None:
        self.name, self._cluster, self._boot = name, cluster, boot
        will = device_status(name, state=DeviceState.OFFLINE, boot=boot).model_dump_json()
        self._topic = topics.status_topic(cluster, name)
        self._connection: Connection | None = None
        self._connection = connect(
            ConnectionSettings(name=name, will=Will(self._topic, will.encode())),
            Callbacks(on_delivery=lambda d: d.ack(), on_connected=lambda _: self.announce()),
        )
        self.announce()

    def announce(self) -> None:
        if self._connection is not None:
            status = device_status(self.name, boot=self._boot).model_dump_json()
            self._connection.publish(self._topic, status.encode(), retain=True)

    def publish_metrics(self, **changes: object) -> None:
        assert self._connection is not None
        payload = device_metrics(self.name, **changes).model_dump_json().encode()
        self._connection.publish(topics.metrics_topic(self._cluster, self.name), payload, qos=0)

    def close(self) -> None:
        assert self._connection is not None
        self._connection.close(forget_session=True)


@pytest.fixture
def name(unique: str) -> str:
    return f"observer-{unique}"


def test_it_sees_what_is_retained_and_what_is_said_and_tells_of_it(
    connect: Connect, cluster: str, name: str, tmp_path: Path
) -> None:
    plan = make_tiny_plan(tmp_path, cluster=cluster)
    planner = connect(ConnectionSettings(name=f"p-{name}"), Callbacks(on_delivery=lambda _: None))
    planner.publish(topics.plan_topic(cluster), plan.to_message().encode(), retain=True).result(5)
    device = Device(connect, cluster, "pi-0")
    heard: list[Delivery] = []
    with Observer(connect, cluster, name, on_heard=heard.append) as observer:
        eventually(lambda: observer.view().plan, "the plan")
        eventually(lambda: observer.view().device("pi-0"), "the status")
        device.publish_metrics()
        eventually(lambda: observer.view().devices[0].metrics, "the metrics")
        view = observer.view()
        assert view.is_connected
        assert view.plan is not None
        assert view.plan.plan_id == plan.plan_id
        assert view.devices[0].is_online
        eventually(lambda: observer.view().broker.uptime_s is not None, "the broker's own word")
        planner.publish(topics.metrics_topic(cluster, "pi-9"), b"{}").result(5)
        eventually(lambda: observer.view().ignored == 1, "a message that tells nothing")
        kinds = {d.topic for d in heard}
        assert topics.metrics_topic(cluster, "pi-0") in kinds
        assert topics.metrics_topic(cluster, "pi-9") not in kinds
    planner.publish(topics.plan_topic(cluster), b"", retain=True).result(5)
    planner.close(forget_session=True)
    device.close()


def test_from_when_a_device_is_in_view_nothing_that_it_says_is_missed(
    connect: Connect, cluster: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the broker takes over the subscriptions."""
    device = Device(connect, cluster, "pi-0")

    def connect_slowly(settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        connection = connect(settings, callbacks)
        subscribe = connection.subscribe

        def subscribe_slowly(topic_filter: str, qos: int = 1) -> None:
            subscribe(topic_filter, qos)
            time.sleep(0.1)

        monkeypatch.setattr(connection, "subscribe", subscribe_slowly)
        return connection

    def answer(heard: Delivery) -> None:
        if heard.topic == topics.status_topic(cluster, "pi-0"):
            device.publish_metrics()

    with Observer(connect_slowly, cluster, name, on_heard=answer) as observer:
        eventually(lambda: (d := observer.view().device("pi-0")) and d.metrics, "the metrics")
    device.close()


def test_a_restarted_broker_is_noticed_and_leaves_no_ghost(
    own_broker: EmbeddedBroker, cluster: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It forgets all that was retained; pi-1 does not come back."""
    monkeypatch.setattr(state, "CONFIRM_WITHIN_S", 4.0)
    connect = Connector(own_broker.address)
    stays, goes = (Device(connect, cluster, f"pi-{number}") for number in range(2))
    with Observer(connect, cluster, name) as observer:
        eventually(lambda: len(observer.view().devices) == 2, "both devices")
        own_broker.kill()
        eventually(lambda: not observer.view().is_connected, "the loss")
        assert len(observer.view().devices) == 2  # what was last heard stays in sight
        goes.close()
        own_broker.start()
        eventually(lambda: observer.view().is_connected, "the connection", 30)

        def is_right() -> bool:
            stays.publish_metrics()
            view = observer.view()
            return [device.name for device in view.devices] == ["pi-0"] and view.devices[0].is_fresh

        eventually(is_right, "the view without a ghost", 30)
        assert observer.view().devices[0].is_online
    stays.close()


def test_fifty_devices_are_all_in_view(connect: Connect, cluster: str, name: str) -> None:
    with Observer(connect, cluster, name) as observer:
        devices = [Device(connect, cluster, f"pi-{number}-{name}") for number in range(MANY)]
        for turn in range(3):
            for device in devices:
                device.publish_metrics(batches_total=turn)

        def all_heard() -> bool:
            view = observer.view()
            return len(view.devices) == MANY and all(len(d.history) == 3 for d in view.devices)

        eventually(all_heard, "three messages of each device")
        assert all(device.is_online and device.is_fresh for device in observer.view().devices)
        for device in devices:
            device.close()


@pytest.fixture
def guarded_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    """It knows the user observer."""
    if shutil.which("mosquitto_passwd") is None:
        pytest.fail("mosquitto_passwd is missing; it comes with mosquitto")
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), "observer", "right"], check=True)
    passwords.chmod(0o644)
    let_mosquitto_in(tmp_path)

    def render(settings: MosquittoSettings) -> str:
        text = render_mosquitto_conf(settings)
        text = text.replace("allow_anonymous true", "allow_anonymous false")
        return text + f"password_file {passwords}\n"

    monkeypatch.setattr(broker.embedded, "render_mosquitto_conf", render)
    with EmbeddedBroker() as running:
        yield running


def test_a_wrong_password_is_said_at_once(guarded_broker: EmbeddedBroker, cluster: str) -> None:
    def as_observer(password: str) -> Connector:
        port = guarded_broker.port
        return Connector(BrokerAddress("127.0.0.1", port, "observer", password))

    with pytest.raises(NotAuthorisedError, match="check the user name and the password"):
        Observer(as_observer("wrong"), cluster, "observer")
    with Observer(as_observer("right"), cluster, "observer") as observer:
        assert observer.view().is_connected


class Refusing:
    """A connection whose owner is told of a failure at the next word."""

    is_connected = True

    def __init__(self, settings: ConnectionSettings, callbacks: Callbacks) -> None:
        self.callbacks = callbacks

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        if topic_filter.endswith("/plan"):
            self.callbacks.on_failed(NotAuthorisedError("not for you"))

    def close(self, forget_session: bool = False) -> None:
        assert forget_session


def test_a_refused_subscription_is_raised_where_the_view_is_asked_for() -> None:
    with (
        Observer(Refusing, "home", secrets.token_hex(4)) as observer,  # type: ignore[arg-type]
        pytest.raises(BrokerError, match="not for you"),
    ):
        observer.view()
