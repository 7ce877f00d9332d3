"""The fleet's certificates on disk: right for their use, kept, renewed, revoked."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contract.errors import SettingsError
from deploy import certificates
from deploy.authority import CertificateStore, open_store
from deploy.fleet_file import parse_fleet
from tests.deploy.fleets import FLEET, SEPARATE_BROKER, WITH_PASSWORDS

NOW = datetime.now(UTC).replace(microsecond=0)
SOON = timedelta(days=60)


@contextmanager
def at_work(folder: Path, text: str = FLEET, now: datetime = NOW) -> Iterator[CertificateStore]:
    with open_store(folder, parse_fleet(text, "f"), now) as opened:
        yield opened


def make(folder: Path, text: str = FLEET, now: datetime = NOW) -> None:
    with at_work(folder, text, now) as opened:
        opened.certificates()


def read(file: Path) -> x509.Certificate:
    return certificates.read_certificate(file.read_text())


def common_name(certificate: x509.Certificate) -> str:
    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_every_certificate_is_what_its_use_asks_for(tmp_path: Path) -> None:
    make(tmp_path, SEPARATE_BROKER)
    ca, broker = read(tmp_path / "authority/ca.crt"), read(tmp_path / "authority/broker.crt")
    users = {file.stem: read(file) for file in tmp_path.glob("credentials/*.crt")}
    assert set(users) == set(parse_fleet(FLEET, "f").users)
    assert {common_name(found) for found in users.values()} == set(users)
    assert all(common_name(found) == name for name, found in users.items())
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.value.path_length, constraints.critical) == (
        *(True, 0, True),
    )
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    for found, purpose in (
        (broker, ExtendedKeyUsageOID.SERVER_AUTH),
        *((user, ExtendedKeyUsageOID.CLIENT_AUTH) for user in users.values()),
    ):
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
            purpose
        ]
        usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
        assert (usage.digital_signature, usage.key_cert_sign) == (True, False)
        assert certificates.is_signed_by(found, ca)
        assert found.not_valid_after_utc == NOW + certificates.VALIDITY
    assert ca.not_valid_after_utc - NOW > timedelta(days=3600)
    serials = [found.serial_number for found in (ca, broker, *users.values())]
    assert len(set(serials)) == len(serials)
    assert min(serials).bit_length() > 64


def test_the_broker_s_certificate_is_for_every_name_that_it_is_called_by(tmp_path: Path) -> None:
    text = SEPARATE_BROKER.replace("port: 1999", "names: [pi-8.lan, 10.0.0.8, 'fd00::8']")
    make(tmp_path, text)
    found = read(tmp_path / "authority/broker.crt")
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pi-8.lan", "hub", "broker", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ip_address(text) for text in ("192.168.1.10", "10.0.0.8", "fd00::8", "127.0.0.1", "::1")
    ]


def test_openssl_itself_verifies_them(tmp_path: Path) -> None:
    make(tmp_path)
    ca = str(tmp_path / "authority/ca.crt")
    for file, purpose in (
        (tmp_path / "authority/broker.crt", "sslserver"),
        (tmp_path / "credentials/pi-0.crt", "sslclient"),
    ):
        done = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca),
                *("-crl_check", "-CRLfile", tmp_path / "authority/revoked.crl", file),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_what_is_good_is_kept_and_everything_is_secret(tmp_path: Path) -> None:
    make(tmp_path)
    before = state(tmp_path)
    (tmp_path / "credentials/pi-0.key").chmod(0o644)
    (tmp_path / "authority").chmod(0o755)
    make(tmp_path, now=NOW + timedelta(days=300))
    assert state(tmp_path) == before
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_with_passwords_only_the_broker_has_one(tmp_path: Path) -> None:
    make(tmp_path, WITH_PASSWORDS)
    assert list(tmp_path.glob("credentials/*")) == []
    assert (tmp_path / "authority/broker.crt").exists()


def lose_the_key(folder: Path) -> None:
    (folder / "credentials/pi-1.key").unlink()


def lose_the_certificate(folder: Path) -> None:
    (folder / "credentials/pi-1.crt").unlink()


def take_another_s_key(folder: Path) -> None:
    (folder / "credentials/pi-1.key").write_text((folder / "credentials/pi-0.key").read_text())


@pytest.mark.parametrize("damage", [lose_the_key, lose_the_certificate, take_another_s_key])
def test_what_does_not_fit_is_made_anew_and_nothing_else(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    make(tmp_path)
    before = state(tmp_path)
    damage(tmp_path)
    make(tmp_path)
    after = state(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {
        *("credentials/pi-1.crt", "credentials/pi-1.key", "authority/issued"),
    }
    found = read(tmp_path / "credentials/pi-1.crt")
    assert certificates.fits((tmp_path / "credentials/pi-1.key").read_text(), found)


def test_another_address_of_the_broker_means_another_certificate_for_it_alone(
    tmp_path: Path,
) -> None:
    make(tmp_path)
    before = state(tmp_path)
    make(tmp_path, FLEET.replace("192.168.1.20", "192.168.1.99"))
    after = state(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {
        *("authority/broker.crt", "authority/broker.key", "authority/issued"),
    }
    assert "192.168.1.99" in certificates.addresses_of(read(tmp_path / "authority/broker.crt"))


def test_only_what_ends_soon_is_renewed_or_what_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    later = NOW + certificates.VALIDITY - timedelta(days=30)
    with at_work(tmp_path, now=NOW + timedelta(days=10)) as opened:
        assert opened.renew((), SOON) == {}
        assert list(opened.renew(("pi-1",), SOON)) == ["pi-1"]
    renewed = read(tmp_path / "credentials/pi-1.crt")
    with at_work(tmp_path, now=later) as opened:
        ends = opened.renew((), timedelta(days=35))
    assert set(ends) == {*parse_fleet(FLEET, "f").users, "broker"} - {"pi-1"}
    assert set(ends.values()) == {later + certificates.VALIDITY}
    assert read(tmp_path / "credentials/pi-1.crt") == renewed
    ca = read(tmp_path / "authority/ca.crt")
    assert all(certificates.is_signed_by(read(f), ca) for f in tmp_path.glob("credentials/*.crt"))


def test_what_has_expired_is_made_anew_by_rendering(tmp_path: Path) -> None:
    make(tmp_path)
    later = NOW + certificates.VALIDITY + timedelta(days=1)
    make(tmp_path, now=later)
    for file in (tmp_path / "authority/broker.crt", tmp_path / "credentials/pi-0.crt"):
        assert read(file).not_valid_after_utc == later + certificates.VALIDITY


def test_a_certificate_does_not_outlive_its_ca(tmp_path: Path) -> None:
    make(tmp_path)
    later = NOW + certificates.CA_VALIDITY - timedelta(days=100)
    make(tmp_path, now=later)
    ca = read(tmp_path / "authority/ca.crt")
    assert read(tmp_path / "credentials/pi-0.crt").not_valid_after_utc == ca.not_valid_after_utc
    with pytest.raises(SettingsError, match="CA has expired; delete authority/"):
        make(tmp_path, now=later + timedelta(days=101))


def revoked(folder: Path) -> frozenset[int]:
    return certificates.read_revocation_list((folder / "authority/revoked.crl").read_text())[0]


def test_whoever_is_revoked_loses_every_certificate_and_the_key(tmp_path: Path) -> None:
    make(tmp_path)
    first = read(tmp_path / "credentials/pi-1.crt").serial_number
    with at_work(tmp_path) as opened:
        opened.renew(("pi-1",), SOON)
        second = read(tmp_path / "credentials/pi-1.crt").serial_number
        assert opened.revoke("pi-1") == 2
    assert revoked(tmp_path) == {first, second}
    assert not list(tmp_path.glob("credentials/pi-1.*"))
    make(tmp_path)  # it is still of the fleet: a new one, which is good
    third = read(tmp_path / "credentials/pi-1.crt").serial_number
    assert third not in revoked(tmp_path)
    with at_work(tmp_path) as opened:
        assert opened.revoke("pi-1") == 1
        assert opened.revoke("client-a") == 1
    assert {first, second, third} < revoked(tmp_path)


def test_whoever_has_left_the_fleet_can_still_be_revoked(tmp_path: Path) -> None:
    make(tmp_path)
    serial = read(tmp_path / "credentials/client-b.crt").serial_number
    with at_work(tmp_path, FLEET.replace("  - client-b\n", "")) as opened:
        assert opened.revoke("client-b") == 1
    assert revoked(tmp_path) == {serial}


def test_what_has_expired_leaves_the_list(tmp_path: Path) -> None:
    make(tmp_path)
    with at_work(tmp_path) as opened:
        opened.revoke("pi-1")
    make(tmp_path, now=NOW + certificates.VALIDITY + timedelta(days=2))
    with at_work(tmp_path, now=NOW + certificates.VALIDITY + timedelta(days=2)) as opened:
        opened.revoke("client-a")
    assert len(revoked(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (FLEET, "pi-9", "no certificate that is still good.*pi-0, pi-1, planner"),
        (FLEET, "broker", "cannot be revoked.*delete authority/"),
        (WITH_PASSWORDS, "pi-1", "security: passwords.*delete credentials/USER"),
    ],
)
def test_who_cannot_be_revoked_is_told(tmp_path: Path, text: str, name: str, words: str) -> None:
    make(tmp_path, text)
    before = state(tmp_path)
    with at_work(tmp_path, text) as opened, pytest.raises(SettingsError, match=words):
        opened.revoke(name)
    assert state(tmp_path) == before


def test_who_cannot_be_renewed_is_told(tmp_path: Path) -> None:
    make(tmp_path)
    with at_work(tmp_path) as opened, pytest.raises(SettingsError, match=r"'pi-9'.*broker, pi-0"):
        opened.renew(("pi-9",), SOON)
    with (
        at_work(tmp_path, WITH_PASSWORDS) as opened,
        pytest.raises(SettingsError, match="security: passwords"),
    ):
        opened.renew(("pi-0",), SOON)


def test_a_rendering_that_signs_nothing_does_without_the_ca_s_key(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "authority/ca.key").rename(tmp_path / "in-a-safe")
    make(tmp_path)
    with (
        at_work(tmp_path) as opened,
        pytest.raises(SettingsError, match=r"ca\.key: is not there.*put it back"),
    ):
        opened.renew(("pi-0",), SOON)


def test_a_lost_ca_certificate_is_not_replaced_in_silence(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "authority/ca.crt").unlink()
    with pytest.raises(SettingsError, match=r"ca\.crt: is not there, but its key is"):
        make(tmp_path)


def test_a_new_ca_means_new_certificates_for_all(tmp_path: Path) -> None:
    make(tmp_path)
    before = state(tmp_path)
    for file in (tmp_path / "authority").iterdir():
        file.unlink()
    make(tmp_path)
    after = state(tmp_path)
    assert all(after[name][0] != before[name][0] for name in after)
    assert set(after) == set(before)


@pytest.mark.parametrize("name", ["authority/ca.crt", "credentials/pi-0.crt"])
def test_a_file_that_is_no_certificate_is_named(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    (tmp_path / name).write_text("something else\n")
    with pytest.raises(SettingsError, match="is no certificate in PEM") as caught:
        make(tmp_path)
    assert name in str(caught.value)


def test_a_damaged_register_is_told(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "authority/issued").write_text("what is this\n")
    with at_work(tmp_path) as opened, pytest.raises(SettingsError, match="issued line 1"):
        opened.revoke("pi-0")


def test_a_clock_that_cannot_be_right_signs_nothing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"clock says 1970-01-01.*timedatectl"):
        make(tmp_path, now=datetime(1970, 1, 1, tzinfo=UTC))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "authority").write_text("a file where a folder must be")
    with pytest.raises(SettingsError, match="authority: cannot keep the certificates there"):
        make(tmp_path)
