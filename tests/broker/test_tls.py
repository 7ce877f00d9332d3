"""Mutual TLS with a real Mosquitto: who is let in, who is refused, and what each refusal says."""

import hashlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import broker.connection
from broker.connection import Connector, PahoConnection
from broker.embedded import EmbeddedBroker
from broker.tls import client_context
from broker.transport import (
    Callbacks,
    ConnectionSettings,
    Delivery,
    PublishOutcome,
    TlsFiles,
)
from contract.errors import (
    BrokerUnreachableError,
    BrokerUntrustedError,
    NotAuthorisedError,
)
from deploy import certificates
from tests.certified import LONG_AGO, TestAuthority, at
from tests.conftest import eventually

ACL = "pattern readwrite own/%u\npattern readwrite own/%u/#\n"
FOR_EVER = None
"""Of `connect_timeout_s`: what is refused must not be tried for ever, so these tests end."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def guarded(
    authority: TestAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedBroker]:
    acl = tmp_path_factory.mktemp("acl") / "acl"
    acl.write_text(ACL)
    revoked = authority.user("revoked")
    authority.revoke(revoked)
    with EmbeddedBroker(tls=authority.listener(), acl_file=acl) as running:
        yield running


Open = Callable[..., PahoConnection]


@pytest.fixture
def opened() -> Iterator[Open]:
    made: list[PahoConnection] = []

    def open_(
        running: EmbeddedBroker,
        tls: TlsFiles | None,
        name: str,
        heard: list[Delivery] | None = None,
        **settings: Any,
    ) -> PahoConnection:
        settings.setdefault("connect_timeout_s", FOR_EVER)
        connection = PahoConnection(
            at(running, tls),
            ConnectionSettings(name=name, **settings),
            Callbacks(on_delivery=heard.append if heard is not None else Delivery.ack),
        )
        connection.open()
        made.append(connection)
        return connection

    yield open_
    for connection in made:
        connection.close(forget_session=True)


def test_the_own_certificate_lets_us_in_and_says_who_we_are(
    authority: TestAuthority, guarded: EmbeddedBroker, opened: Open
) -> None:
    heard: list[Delivery] = []
    connection = opened(guarded, authority.user("pi-0"), "pi-0", heard)
    connection.subscribe("own/pi-0")
    eventually(
        lambda: connection.publish("own/pi-0", b"x").result(timeout=5) is PublishOutcome.ACCEPTED,
        "the own topic is allowed",
    )
    with pytest.raises(NotAuthorisedError, match="refused"):
        connection.publish("own/pi-1", b"forged").result(timeout=5)
    eventually(lambda: any(d.payload == b"x" for d in heard), "it arrives")


def no_certificate(ours: TestAuthority, other: TestAuthority) -> TlsFiles:
    return TlsFiles(ours.ca_file)


def expired(ours: TestAuthority, other: TestAuthority) -> TlsFiles:
    return ours.user("pi-expired", LONG_AGO)


def revoked(ours: TestAuthority, other: TestAuthority) -> TlsFiles:
    return TlsFiles(ours.ca_file, ours.folder / "revoked.crt", ours.folder / "revoked.key")


def of_another_ca(ours: TestAuthority, other: TestAuthority) -> TlsFiles:
    theirs = other.user("pi-0")
    return TlsFiles(ours.ca_file, theirs.cert_file, theirs.key_file)


def self_signed(ours: TestAuthority, other: TestAuthority) -> TlsFiles:
    return ours.files("self", certificates.new_authority("pi-0", ours.now))


def of_the_broker(ours: TestAuthority, other: TestAuthority) -> TlsFiles:
    return TlsFiles(ours.ca_file, ours.folder / "broker.crt", ours.folder / "broker.key")


REFUSED = [
    (no_certificate, "--cert-file"),
    (expired, "our certificate has expired"),
    (revoked, "has revoked our certificate"),
    (of_another_ca, "does not know the CA of our certificate"),
    (self_signed, "does not know the CA of our certificate"),
    (of_the_broker, "refuses our certificate"),
]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(("files", "words"), REFUSED, ids=[case[0].__name__ for case in REFUSED])
def test_who_shows_no_right_certificate_is_refused_at_once_and_told_why(
    authority: TestAuthority,
    guarded: EmbeddedBroker,
    opened: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: ssl.TLSVersion,
    files: Callable[[TestAuthority, TestAuthority], TlsFiles],
    words: str,
) -> None:
    """With TLS 1.2 the refusal ends the handshake, with 1.3 it comes after it."""

    def of_this_version(shown: TlsFiles) -> ssl.SSLContext:
        context = client_context(shown)
        context.maximum_version = version
        return context

    monkeypatch.setattr(broker.connection, "client_context", of_this_version)
    tls = files(authority, TestAuthority(tmp_path / "other"))
    with pytest.raises(NotAuthorisedError, match=words):
        opened(guarded, tls, "pi-0")


def test_a_version_of_tls_before_1_2_is_refused(
    authority: TestAuthority, guarded: EmbeddedBroker
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.ca_file)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    connection = PahoConnection(
        at(guarded, None), ConnectionSettings(name="old"), Callbacks(on_delivery=Delivery.ack)
    )
    connection._client.tls_set_context(context)
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        connection._client.connect("127.0.0.1", guarded.port)
    connection._stop_network()


def test_a_broker_of_another_ca_is_not_trusted(
    guarded: EmbeddedBroker, opened: Open, tmp_path: Path
) -> None:
    other = TestAuthority(tmp_path)
    with pytest.raises(BrokerUntrustedError, match=r"ca\.crt does not vouch for"):
        opened(guarded, other.user("pi-0"), "pi-0")


def test_a_broker_under_another_name_is_not_trusted(authority: TestAuthority, opened: Open) -> None:
    elsewhere = authority.listener(("192.0.2.1", "broker.example"))
    with (
        EmbeddedBroker(tls=elsewhere) as running,
        pytest.raises(BrokerUntrustedError, match=r"for other names.*broker\.names"),
    ):
        opened(running, authority.user("pi-0"), "pi-0")


def test_a_broker_whose_certificate_has_expired_is_not_trusted(
    authority: TestAuthority, opened: Open
) -> None:
    with (
        EmbeddedBroker(tls=authority.listener(now=LONG_AGO)) as running,
        pytest.raises(BrokerUntrustedError, match=r"has expired by this machine's clock.*renew"),
    ):
        opened(running, authority.user("pi-0"), "pi-0")


@pytest.fixture
def of_the_future(authority: TestAuthority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A broker whose certificate begins tomorrow: what a Pi without a clock takes others for."""
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "NOT_BEFORE", datetime.now(UTC) + timedelta(days=1))
        listener = authority.listener()
    with EmbeddedBroker(tls=listener) as running:
        yield running


def test_a_certificate_that_is_not_valid_yet_says_clock_and_is_waited_for(
    authority: TestAuthority, of_the_future: EmbeddedBroker, opened: Open
) -> None:
    """Waited for, since the network may yet set the clock: so it takes as long as it may."""
    with pytest.raises(BrokerUntrustedError, match=r"the clock is probably wrong.*timedatectl"):
        opened(of_the_future, authority.user("pi-0"), "pi-0", connect_timeout_s=4.0)


def test_a_pi_of_1970_takes_our_certificates(authority: TestAuthority) -> None:
    """Nothing that we make begins after the first second that any clock can say."""
    authority.listener()
    authority.user("pi-0")
    for name in ("ca.crt", "broker.crt", "pi-0.crt"):
        found = certificates.read_certificate((authority.folder / name).read_text())
        assert found.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)


def test_nobody_can_take_the_client_id_of_another(
    authority: TestAuthority, guarded: EmbeddedBroker, opened: Open
) -> None:
    heard: list[Delivery] = []
    owner = opened(guarded, authority.user("pi-0"), "pi-0", heard)
    owner.subscribe("own/pi-0/#")
    stolen: list[Delivery] = []
    thief = opened(guarded, authority.user("pi-1"), "pi-0", stolen)
    thief.subscribe("own/pi-0/#")
    owner.publish("own/pi-0/a", b"mine").result(timeout=5)
    eventually(lambda: [d.payload for d in heard] == [b"mine"], "the owner still hears")
    assert owner.is_connected
    assert owner.reconnects == 0
    assert stolen == []
    with pytest.raises(NotAuthorisedError):
        thief.publish("own/pi-0/a", b"forged").result(timeout=5)


def test_a_renewed_certificate_works_and_so_does_the_old_one_until_it_ends(
    authority: TestAuthority, guarded: EmbeddedBroker, opened: Open
) -> None:
    old = certificates.issue_to_user(authority.signer, "pi-7", authority.now)
    kept, renewed = authority.files("pi-7-old", old), authority.user("pi-7")
    assert (authority.folder / "pi-7.crt").read_text() != old.certificate
    for files in (kept, renewed):
        opened(guarded, files, "pi-7").close()


def test_a_device_that_is_revoked_is_out_after_a_restart_and_the_others_come_back(
    tmp_path: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    authority = TestAuthority(tmp_path)
    good, bad = authority.user("pi-0"), authority.user("pi-1")
    caplog.set_level(logging.ERROR)
    with EmbeddedBroker(tls=authority.listener()) as running:
        stays, goes = opened(running, good, "pi-0"), opened(running, bad, "pi-1")
        authority.revoke(bad)
        running.kill()
        running.start()
        eventually(lambda: "has revoked our certificate" in caplog.text, "the refusal is told")
        eventually(lambda: stays.is_connected, "the other is back")
        assert not goes.is_connected


def test_a_list_of_revoked_certificates_of_a_later_number_is_the_one_that_holds(
    tmp_path: Path, opened: Open
) -> None:
    """Also where the broker reads it by SIGHUP, with the earlier one still in its memory."""
    authority = TestAuthority(tmp_path)
    earlier = (tmp_path / "revoked.crl").read_text()
    bad = authority.user("pi-1")
    authority.revoke(bad)
    (tmp_path / "revoked.crl").write_text(earlier + (tmp_path / "revoked.crl").read_text())
    with EmbeddedBroker(tls=authority.listener()) as running:
        opened(running, authority.user("pi-0"), "pi-0")
        with pytest.raises(NotAuthorisedError, match="has revoked"):
            opened(running, bad, "pi-1")


def test_a_broker_without_tls_is_told_from_one_with_it(
    authority: TestAuthority, shared_broker: EmbeddedBroker, guarded: EmbeddedBroker, opened: Open
) -> None:
    with pytest.raises(BrokerUnreachableError, match=r"TLS port, 8883|before TLS"):
        opened(shared_broker, authority.user("pi-0"), "pi-0", connect_timeout_s=1.5)
    with pytest.raises(BrokerUnreachableError, match="by TLS it may: --ca-file"):
        opened(guarded, None, "pi-0", connect_timeout_s=1.5)


def test_other_brokers_of_the_fleet_are_reached_by_the_same_tls(authority: TestAuthority) -> None:
    tls = authority.user("pi-0")
    with EmbeddedBroker(tls=authority.listener()) as first:
        main = Connector(at(first, tls))
        there = main.elsewhere("pi-8")
        assert isinstance(there, Connector)
        assert there.address.tls == tls
        assert there.address.port == 8883
        with EmbeddedBroker(tls=authority.listener()) as second:
            edge = main.elsewhere(f"127.0.0.1:{second.port}")
            assert edge is not None
            edge(ConnectionSettings(name="pi-0"), Callbacks(on_delivery=Delivery.ack)).close()


class Crowded:
    """Notes when two threads are inside one TLS socket at once, and makes it likelier."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self._inside: set[int] = set()
        for name in ("recv_into", "send"):
            monkeypatch.setattr(ssl.SSLSocket, name, self._noted(getattr(ssl.SSLSocket, name)))

    def _noted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(sock: ssl.SSLSocket, *arguments: Any, **named: Any) -> Any:
            if id(sock) in self._inside:
                self.times += 1
            self._inside.add(id(sock))
            try:
                time.sleep(0.0001)
                return call(sock, *arguments, **named)
            finally:
                self._inside.discard(id(sock))

        return noted


def test_large_messages_of_many_threads_arrive_whole_while_others_are_read(
    authority: TestAuthority, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL knows one thread at a time in a connection; ours are read and written by several."""
    crowded = Crowded(monkeypatch)
    threads, each = 4, 40
    with EmbeddedBroker(tls=authority.listener()) as running:
        heard: list[Delivery] = []
        peers = [opened(running, authority.user(f"pi-{n}"), f"pi-{n}", heard) for n in range(2)]
        for name, peer in enumerate(peers):
            peer.subscribe("t/#")
            peer.publish(f"t/{name}", b"").result(timeout=20)
            there = f"t/{name}"
            eventually(lambda: any(d.topic == there for d in heard), "it has subscribed")  # noqa: B023
        eventually(lambda: len(heard) == 3, "the first has heard the second, too")
        for delivery in heard:
            delivery.ack()
        heard.clear()
        failures: list[BaseException] = []

        def send(thread: int) -> None:
            try:
                for number in range(each):
                    body = bytes([thread, number]) * (1 + 37_501 * (number % 5))
                    topic = f"t/{thread}/{hashlib.sha256(body).hexdigest()}"
                    peers[thread % 2].publish(topic, body).result(timeout=60)
            except Exception as error:  # noqa: BLE001 whatever it is, the test says it
                failures.append(error)

        def acknowledge() -> bool:
            for delivery in list(heard):
                delivery.ack()
            return len(heard) >= 2 * threads * each or bool(failures)

        running_threads = [threading.Thread(target=send, args=(n,)) for n in range(threads)]
        for thread in running_threads:
            thread.start()
        eventually(acknowledge, "all of it arrives", timeout_s=120)
        for thread in running_threads:
            thread.join(timeout=60)
        assert failures == []
        assert len(heard) == 2 * threads * each
        for delivery in heard:
            digest = hashlib.sha256(delivery.payload).hexdigest()
            assert delivery.topic.rpartition("/")[2] == digest
        assert all(peer.reconnects == 0 for peer in peers)
        assert crowded.times == 0
