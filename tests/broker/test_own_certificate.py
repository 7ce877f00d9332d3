"""Who we are by our certificate, and what is said of files that cannot be used. No broker."""

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from broker.tls import client_context, explain, own_certificate
from broker.transport import TlsFiles
from contract.errors import BrokerUnreachableError, NotAuthorisedError, SettingsError
from deploy.certificates import VALIDITY
from shardline.connecting import connect_to
from tests.certified import LONG_AGO, TestAuthority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("authority"))


def own(files: TlsFiles) -> Any:
    assert files.cert_file is not None
    assert files.key_file is not None
    return own_certificate(files.cert_file, files.key_file)


def test_the_certificate_says_whose_it_is_and_until_when(authority: TestAuthority) -> None:
    found = own(authority.user("kitchen-pi"))
    assert found.common_name == "kitchen-pi"
    ends = authority.now + VALIDITY
    assert abs(found.not_after_unix_s - ends.timestamp()) < timedelta(seconds=2).total_seconds()


def test_a_certificate_that_has_expired_is_told_before_any_broker_is_asked(
    authority: TestAuthority,
) -> None:
    with pytest.raises(SettingsError, match=r"late\.crt: has expired.*clock.*deploy renew"):
        own(authority.user("late", LONG_AGO))


def test_the_broker_s_certificate_is_nobody_s_to_show(authority: TestAuthority) -> None:
    listener = authority.listener()
    with pytest.raises(SettingsError, match="is no certificate of a user"):
        own_certificate(Path(listener.cert_file), Path(listener.key_file))


def test_a_key_of_another_certificate_is_told(authority: TestAuthority) -> None:
    a, b = authority.user("a"), authority.user("b")
    with pytest.raises(SettingsError, match=r"b\.key: is not the key of .*a\.crt"):
        own(TlsFiles(a.ca_file, a.cert_file, b.key_file))


def test_an_encrypted_key_is_told_and_no_passphrase_is_asked_for(
    authority: TestAuthority,
) -> None:
    files = authority.user("c")
    assert files.key_file is not None
    key = serialization.load_pem_private_key(files.key_file.read_bytes(), password=None)
    locked = authority.folder / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(SettingsError, match="encrypted"):
        own(TlsFiles(files.ca_file, files.cert_file, locked))


@pytest.mark.parametrize("which", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("", "PEM"), ("no certificate\n", "PEM"), ("\x00\xff" * 50, "PEM")],
    ids=["missing", "empty", "text", "binary"],
)
def test_a_file_that_cannot_be_used_is_named(
    authority: TestAuthority, tmp_path: Path, which: str, content: str | None, words: str
) -> None:
    good = authority.user("d")
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_text(content)
    files = {name: getattr(good, name) for name in ("ca_file", "cert_file", "key_file")}
    with pytest.raises(SettingsError, match=words) as caught:
        client_context(TlsFiles(**files | {which: bad}))
    assert str(bad) in str(caught.value)


def connect(files: TlsFiles, username: str | None = None, broker: str = "hub") -> Any:
    return connect_to(broker, username, None, files.ca_file, files.cert_file, files.key_file)


def test_the_user_need_not_be_named_beside_the_certificate(authority: TestAuthority) -> None:
    files = authority.user("client-a")
    for username in (None, "client-a"):
        address = connect(files, username).address
        assert address.username == "client-a"
        assert (address.host, address.port, address.tls) == ("hub", 8883, files)
    assert connect(files, None, "hub:1999").address.port == 1999


def test_another_name_than_the_certificate_s_is_refused(authority: TestAuthority) -> None:
    with pytest.raises(SettingsError, match=r"certificate of 'client-a'.*'pi-0'"):
        connect(authority.user("client-a"), "pi-0")


def test_half_a_credential_is_refused(authority: TestAuthority) -> None:
    files = authority.user("e")
    for half in (
        TlsFiles(files.ca_file, files.cert_file, None),
        TlsFiles(files.ca_file, None, files.key_file),
    ):
        with pytest.raises(SettingsError, match="both, or neither"):
            connect(half)
        with pytest.raises(SettingsError, match="both, or neither"):
            client_context(half)
    with pytest.raises(SettingsError, match="--ca-file"):
        connect_to("hub", None, None, None, files.cert_file, files.key_file)


def test_a_password_by_tls_needs_no_certificate(authority: TestAuthority, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("opensesame\n")
    address = connect_to("hub", "pi-0", secret, authority.ca_file).address
    assert (address.username, address.password, address.port) == ("pi-0", "opensesame", 8883)
    assert address.tls == TlsFiles(authority.ca_file)
    assert "opensesame" not in repr(address)


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", NotAuthorisedError, "has revoked"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", NotAuthorisedError, "--cert-file"),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", NotAuthorisedError, "refuses our certificate"),
        ("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", NotAuthorisedError, "refuses our certificate"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", BrokerUnreachableError, "protocol version"),
        ("WRONG_VERSION_NUMBER", BrokerUnreachableError, "wrong version number"),
    ],
)
def test_every_word_of_tls_becomes_a_sentence(
    reason: str, kind: type[Exception], words: str
) -> None:
    error = ssl.SSLError(1, "whatever")
    error.reason = reason
    told = explain(error, "hub:8883", TlsFiles(Path("ca.crt")))
    assert type(told) is kind
    assert words in str(told)
    assert "hub:8883" in str(told)
