"""What only the real connection must do: refuse, reconnect, and never confuse two connections."""

import json
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import broker.embedded
import broker.outbox
from broker.connection import Connector, PahoConnection
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.mosquitto_conf import MosquittoSettings, render_mosquitto_conf
from broker.paho_client import PahoClient
from broker.transport import (
    AckToken,
    BrokerAddress,
    Callbacks,
    ConnectionSettings,
    Delivery,
    PublishOutcome,
    parse_address,
)
from contract.errors import (
    BrokerError,
    BrokerUnreachableError,
    MessageTooLargeError,
    NotAuthorisedError,
    SettingsError,
)
from tests.conftest import eventually, let_mosquitto_in

PASSWORD = "opensesame-8d1f"


def opened(
    address: BrokerAddress, name: str, heard: list[Delivery] | None = None, **settings: Any
) -> PahoConnection:
    on_delivery: Callable[[Delivery], None] = heard.append if heard is not None else Delivery.ack
    settings.setdefault("connect_timeout_s", 5.0)
    connection = PahoConnection(
        address, ConnectionSettings(name=name, **settings), Callbacks(on_delivery=on_delivery)
    )
    connection.open()
    return connection


@pytest.fixture
def small_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    """It accepts packets of at most 2,000 bytes."""

    def render(settings: MosquittoSettings) -> str:
        return render_mosquitto_conf(settings.model_copy(update={"max_packet_bytes": 2000}))

    monkeypatch.setattr(broker.embedded, "render_mosquitto_conf", render)
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def guarded_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    """It knows the user pi-0, who may write only to `own/pi-0`."""
    if shutil.which("mosquitto_passwd") is None:
        pytest.fail("mosquitto_passwd is missing; it comes with mosquitto")
    passwords, acl = tmp_path / "passwords", tmp_path / "acl"
    passwords.write_text("")
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), "pi-0", PASSWORD], check=True)
    acl.write_text("pattern readwrite own/%u\npattern read free/#\n")
    for path in (passwords, acl):
        path.chmod(0o644)
    let_mosquitto_in(tmp_path)

    def render(settings: MosquittoSettings) -> str:
        text = render_mosquitto_conf(settings)
        text = text.replace("allow_anonymous true", "allow_anonymous false")
        return text + f"password_file {passwords}\nacl_file {acl}\n"

    monkeypatch.setattr(broker.embedded, "render_mosquitto_conf", render)
    with EmbeddedBroker() as running:
        yield running


def as_user(
    running: EmbeddedBroker, password: str | None, user: str | None = "pi-0"
) -> BrokerAddress:
    return BrokerAddress("127.0.0.1", running.port, user, password)


@pytest.mark.parametrize(
    ("user", "password"), [("pi-0", "wrong"), ("pi-0", None), ("pi-9", PASSWORD), (None, None)]
)
def test_wrong_credentials_are_refused_at_once(
    guarded_broker: EmbeddedBroker, user: str | None, password: str | None
) -> None:
    started = time.monotonic()
    with pytest.raises(NotAuthorisedError, match="user name and the password") as caught:
        opened(as_user(guarded_broker, password, user), "pi-0")
    assert time.monotonic() - started < 3
    assert PASSWORD not in str(caught.value)


def test_a_topic_that_the_acl_forbids_is_refused_and_the_connection_stays(
    guarded_broker: EmbeddedBroker,
) -> None:
    connection = opened(as_user(guarded_broker, PASSWORD), "pi-0")
    future = connection.publish("own/pi-1", b"forged")
    with pytest.raises(NotAuthorisedError, match="refused"):
        future.result(timeout=5)
    connection.subscribe("own/pi-0")
    eventually(
        lambda: connection.publish("own/pi-0", b"x").result(timeout=5) is PublishOutcome.ACCEPTED,
        "the own topic is allowed",
    )
    assert connection.reconnects == 0
    connection.close(forget_session=True)


def test_the_password_never_shows(
    guarded_broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    address = as_user(guarded_broker, PASSWORD)
    connection = opened(address, "pi-0")
    shown = [repr(address), str(address), repr(connection), f"{address!r}", caplog.text]
    with pytest.raises(NotAuthorisedError) as caught:
        connection.publish("own/pi-1", b"forged").result(timeout=5)
    connection.close()
    with pytest.raises(NotAuthorisedError) as refused:
        opened(as_user(guarded_broker, PASSWORD + "x"), "pi-0")
    shown += [repr(caught.value), repr(refused.value), caplog.text]
    assert not [text for text in shown if PASSWORD in text]
    assert "pi-0" in repr(address)


def test_nobody_at_the_address_is_told_in_time() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(BrokerUnreachableError, match=rf"127\.0\.0\.1:{port}.*shardline broker"):
            opened(BrokerAddress("127.0.0.1", port), "x", connect_timeout_s=0.5)
        assert time.monotonic() - started < 3


def test_something_that_is_no_broker_is_told_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(BrokerUnreachableError):
            opened(BrokerAddress("127.0.0.1", silent.getsockname()[1]), "x", connect_timeout_s=0.5)


def test_a_message_too_large_is_refused_and_the_connection_stays(
    small_broker: EmbeddedBroker,
) -> None:
    heard: list[Delivery] = []
    connection = opened(small_broker.address, "x", heard)
    connection.subscribe("t")
    for size in (2000, 2001, 100_000):
        with pytest.raises(MessageTooLargeError, match="max_packet_size") as caught:
            connection.publish("t", b"\0" * size)
        assert caught.value.limit_bytes == 2000
    connection.publish("t", b"\1" * 1900).result(timeout=5)
    eventually(lambda: heard, "the smaller one arrives")
    assert connection.reconnects == 0
    assert connection.is_connected
    connection.close(forget_session=True)


def test_the_largest_message_that_is_let_through_does_arrive(small_broker: EmbeddedBroker) -> None:
    """The check must never let a packet through that makes the broker cut the connection."""
    heard: list[Delivery] = []
    connection = opened(small_broker.address, "x", heard)
    connection.subscribe("topic")
    sent = 0
    for size in range(1960, 2000):
        try:
            connection.publish("topic", b"\0" * size).result(timeout=5)
            sent += 1
        except MessageTooLargeError:
            break
    assert sent > 5
    eventually(lambda: len(heard) == sent, "all arrive")
    assert connection.reconnects == 0
    connection.close(forget_session=True)


def test_nagle_is_off(shared_broker: EmbeddedBroker, unique: str) -> None:
    """With it, a 75 KB hop takes 22 ms instead of 0.4."""
    connection = opened(shared_broker.address, unique)
    sock = connection._client.socket()
    assert sock is not None
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connection.close(forget_session=True)


def test_after_a_broker_restart_we_are_back_with_our_subscriptions(
    own_broker: EmbeddedBroker,
) -> None:
    heard: list[Delivery] = []
    events: list[object] = []
    connection = PahoConnection(
        own_broker.address,
        ConnectionSettings(name="x"),
        Callbacks(heard.append, events.append, lambda reason: events.append(f"lost: {reason}")),
    )
    connection.open()
    connection.subscribe("a")
    connection.subscribe("b/+")
    own_broker.kill()
    eventually(lambda: not connection.is_connected, "the loss is noticed")
    waiting = connection.publish("a", b"sent while the broker is away")
    with pytest.raises(BrokerUnreachableError):
        connection.publish("a", b"telemetry", qos=0).result(timeout=1)
    own_broker.start()
    eventually(lambda: connection.is_connected, "the connection is back")
    assert waiting.result(timeout=5) is not None
    connection.publish("b/c", b"new").result(timeout=5)
    eventually(lambda: any(d.payload == b"new" for d in heard), "the subscription is back")
    assert connection.reconnects == 1
    assert events[0] is False
    assert events[-1] is False  # the broker forgot the session, and we say so
    assert [type(event) for event in events] == [bool, str, bool]
    connection.close(forget_session=True)


def test_an_acknowledgement_of_an_old_connection_does_nothing(own_broker: EmbeddedBroker) -> None:
    """Packet ids begin again with a new session: it would acknowledge another message."""
    heard: list[Delivery] = []
    sender = opened(own_broker.address, "sender")
    victim = opened(own_broker.address, "victim", heard)
    victim.subscribe("t")
    eventually(
        lambda: sender.publish("t", b"old").result(timeout=5) is PublishOutcome.ACCEPTED,
        "it is subscribed",
    )
    eventually(lambda: heard, "the old message arrives")
    old = heard[0]
    sender.close()
    own_broker.kill()
    own_broker.start()
    eventually(lambda: victim.reconnects == 1 and victim.is_connected, "it is back")
    sender = opened(own_broker.address, "sender")
    eventually(
        lambda: sender.publish("t", b"new").result(timeout=5) is PublishOutcome.ACCEPTED,
        "it is subscribed again",
    )
    eventually(lambda: heard[-1].payload == b"new", "the new message arrives")
    old.ack()
    victim.publish("nowhere", b"a round trip, so that a wrong acknowledgement is at the broker")
    victim.publish("nowhere", b"x").result(timeout=5)
    _cut(victim)
    count = len(heard)
    eventually(lambda: len(heard) > count, "the new message comes again: it was not acknowledged")
    assert heard[-1].payload == b"new"
    heard[-1].ack()
    victim.close(forget_session=True)
    sender.close(forget_session=True)


def _cut(connection: PahoConnection) -> None:
    sock = connection._client.socket()
    assert sock is not None
    sock.shutdown(socket.SHUT_RDWR)


def test_an_unacknowledged_message_comes_again_after_a_cut(
    shared_broker: EmbeddedBroker, unique: str
) -> None:
    heard: list[Delivery] = []
    connection = opened(shared_broker.address, unique, heard)
    connection.subscribe(unique)
    connection.publish(unique, b"one").result(timeout=5)
    connection.publish(unique, b"two").result(timeout=5)
    eventually(lambda: len(heard) == 2, "both arrive")
    heard[0].ack()
    connection.publish("nowhere", b"x").result(timeout=5)
    _cut(connection)
    eventually(lambda: len(heard) == 3, "one comes again")
    assert [d.payload for d in heard] == [b"one", b"two", b"two"]
    heard[2].ack()
    connection.publish("nowhere", b"x").result(timeout=5)
    assert len(heard) == 3
    connection.close(forget_session=True)


def test_a_publish_in_flight_survives_a_cut(shared_broker: EmbeddedBroker, unique: str) -> None:
    heard: list[Delivery] = []
    receiver = opened(shared_broker.address, f"r-{unique}", heard, receive_maximum=1000)
    receiver.subscribe(unique)
    accepted = PublishOutcome.ACCEPTED
    eventually(lambda: receiver.publish(unique, b"").result(timeout=5) is accepted, "it hears")
    sender = opened(shared_broker.address, f"s-{unique}")
    futures: list[Future[PublishOutcome]] = []
    for index in range(60):
        futures.append(sender.publish(unique, b"%d" % index + b" " * 50_000))
        if index == 30:
            _cut(sender)
    assert {future.result(timeout=10) for future in futures} == {PublishOutcome.ACCEPTED}
    eventually(lambda: len({bytes(d.payload[:2]) for d in heard if d.payload}) == 60, "all arrive")
    sender.close(forget_session=True)
    receiver.close(forget_session=True)


def test_many_threads_may_publish_at_once(shared_broker: EmbeddedBroker, unique: str) -> None:
    """Each acknowledgement finds its own future, even when it overtakes the publisher."""
    heard: list[Delivery] = []
    connection = opened(shared_broker.address, unique, heard, receive_maximum=5000)
    connection.subscribe(f"{unique}/yes")
    connection.publish(f"{unique}/yes", b"").result(timeout=5)

    def publish(index: int) -> bool:
        listened = index % 2 == 0
        topic = f"{unique}/{'yes' if listened else 'no'}"
        outcome = connection.publish(topic, b"%d" % index).result(timeout=10)
        return outcome is (PublishOutcome.ACCEPTED if listened else PublishOutcome.NO_SUBSCRIBER)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(publish, range(600)))
    assert connection._outbox.is_empty
    connection.close(forget_session=True)


def test_a_closed_connection_leaves_nothing_open(
    shared_broker: EmbeddedBroker, unique: str
) -> None:
    process = psutil.Process()
    before, threads = process.num_fds(), process.num_threads()
    connections = [opened(shared_broker.address, f"{unique}-{i}") for i in range(5)]
    assert process.num_fds() > before
    for connection in connections:
        connection.close(forget_session=True)
    eventually(lambda: process.num_fds() <= before, "all sockets are closed")
    eventually(lambda: process.num_threads() <= threads, "all threads have ended")


def test_a_token_is_used_once_by_many_threads() -> None:
    sent: list[int] = []
    token = AckToken(lambda: sent.append(1))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: token.use(), range(100)))
    assert sent == [1]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("pi-0", "pi-0", 1883),
        ("pi-0:1884", "pi-0", 1884),
        ("192.168.1.10:1", "192.168.1.10", 1),
        ("[::1]:1884", "::1", 1884),
        ("[::1]", "::1", 1883),
        ("broker.example.org:65535", "broker.example.org", 65535),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    address = parse_address(text, "me", "secret")
    assert (address.host, address.port, address.username) == (host, port, "me")
    assert "secret" not in repr(address)


@pytest.mark.parametrize(
    "text", ["", ":1883", "pi-0:", "pi-0:0", "pi-0:65536", "pi-0:x", "pi-0:-1", "pi-0:١", "[]:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="expected host or host:port"):
        parse_address(text)


@pytest.mark.parametrize("text", ["192.168..1", "192.168..1:1883", "a" * 64 + ".local"])
def test_a_name_that_no_host_can_have_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="no host can be called"):
        parse_address(text)


def test_the_connector_opens_what_it_makes(shared_broker: EmbeddedBroker, unique: str) -> None:
    connection = Connector(shared_broker.address)(
        ConnectionSettings(name=unique), Callbacks(on_delivery=Delivery.ack)
    )
    assert connection.is_connected
    connection.close(forget_session=True)
    assert not connection.is_connected
    assert find_mosquitto()


def test_what_a_smaller_limit_does_not_let_through_is_not_sent_again_and_again(
    own_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paho keeps what was published while the broker was away, and the broker comes back small."""
    heard: list[Delivery] = []
    connection = opened(own_broker.address, "x", heard)
    connection.subscribe("t")
    connection.publish("t", b"\1" * 100_000).result(timeout=5)
    own_broker.kill()
    eventually(lambda: not connection.is_connected, "the loss is noticed")
    large = [connection.publish("t", b"\2" * 100_000) for _ in range(25)]
    small = [connection.publish("t", b"small %d" % index) for index in range(5)]

    def render(settings: MosquittoSettings) -> str:
        return render_mosquitto_conf(settings.model_copy(update={"max_packet_bytes": 2000}))

    monkeypatch.setattr(broker.embedded, "render_mosquitto_conf", render)
    own_broker.start()
    for future in large:
        with pytest.raises(MessageTooLargeError, match="accepts 2,000"):
            future.result(timeout=10)
    for future in small:  # those behind it, beyond paho's 20 in flight
        future.result(timeout=10)
    assert connection.reconnects == 1
    assert connection.is_connected
    assert connection.max_packet_bytes == 2000
    assert connection._outbox.is_empty
    connection.close(forget_session=True)


def test_what_waits_for_the_broker_is_bounded_by_bytes(
    own_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.outbox, "MAX_BYTES", 1_000_000)
    connection = opened(own_broker.address, "x")
    own_broker.kill()
    eventually(lambda: not connection.is_connected, "the loss is noticed")
    futures = [connection.publish("t", b"\0" * 300_000) for _ in range(10)]
    assert connection._outbox.waiting_bytes < 1_000_000
    for future in futures[3:]:
        with pytest.raises(BrokerError, match="wait for the broker"):
            future.result(timeout=1)
    own_broker.start()
    for future in futures[:3]:
        future.result(timeout=10)
    eventually(lambda: connection._outbox.is_empty, "there is room again")
    connection.publish("t", b"\0" * 3_000_000).result(timeout=5)  # alone, anything fits
    connection.close(forget_session=True)


@pytest.mark.parametrize("pause_s", [0.0, 0.3])
def test_a_refused_subscription_is_told_with_its_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    """By Mosquitto's dynamic security: its access control file grants everything and filters.

    With a pause the broker answers before the request's number is known here.
    """
    plugins = list(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"))
    if not plugins:
        pytest.skip("this Mosquitto has no dynamic security plugin")
    rights = tmp_path / "dynsec.json"
    rights.write_text(
        json.dumps(
            {
                "defaultACLAccess": {
                    "publishClientSend": True,
                    "publishClientReceive": True,
                    "subscribe": False,
                    "unsubscribe": True,
                },
                "clients": [],
                "groups": [{"groupname": "all", "roles": [{"rolename": "reader"}]}],
                "roles": [
                    {
                        "rolename": "reader",
                        "acls": [
                            {"acltype": "subscribePattern", "topic": "allowed/#", "allow": True}
                        ],
                    }
                ],
                "anonymousGroup": "all",
            }
        )
    )
    rights.chmod(0o666)
    let_mosquitto_in(tmp_path)

    def render(settings: MosquittoSettings) -> str:
        text = render_mosquitto_conf(settings)
        return f"{text}plugin {plugins[0]}\nplugin_opt_config_file {rights}\n"

    subscribe = PahoClient.subscribe

    def slowly(client: PahoClient, *arguments: Any, **named: Any) -> Any:
        asked = subscribe(client, *arguments, **named)
        time.sleep(pause_s)
        return asked

    monkeypatch.setattr(PahoClient, "subscribe", slowly)
    monkeypatch.setattr(broker.embedded, "render_mosquitto_conf", render)
    failed: list[BrokerError] = []
    with EmbeddedBroker() as running:
        connection = PahoConnection(
            running.address,
            ConnectionSettings(name="x", connect_timeout_s=5.0),
            Callbacks(Delivery.ack, on_failed=failed.append),
        )
        connection.open()
        connection.subscribe("allowed/t")
        connection.subscribe("$SYS/broker/publish/messages/dropped")  # we can do without
        assert connection.publish("allowed/t", b"x").result(timeout=5) is PublishOutcome.ACCEPTED
        assert failed == []
        connection.subscribe("forbidden/t")
        eventually(lambda: failed, "the refusal is told")
        assert isinstance(failed[0], NotAuthorisedError)
        assert "forbidden/t" in str(failed[0])
        connection.close(forget_session=True)


def test_a_session_that_another_process_takes_is_logged_where_the_broker_says_so(
    shared_broker: EmbeddedBroker, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Mosquitto 2.0.11 closes in silence, 2.1 says 0x8E: either way the connection is lost."""
    lost: list[str] = []
    first = PahoConnection(
        shared_broker.address,
        ConnectionSettings(name=unique),
        Callbacks(Delivery.ack, on_disconnected=lost.append),
    )
    first.open()
    second = opened(shared_broker.address, unique)
    eventually(lambda: lost, "the first one hears of it")
    first.close()
    second.close(forget_session=True)
    assert ("another process uses the name" in caplog.text) == ("taken over" in lost[0].lower())
