"""The fleet's certificates as files: made once, kept while they are good, renewed, revoked.

authority/      ca.crt and ca.key, which signs everything; broker.crt and broker.key; revoked.crl;
                issued: a line for every certificate that was ever signed
credentials/    <user>.crt and <user>.key

Both folders are for their owner only (mode 0700), and so is every file in them (0600). No key is
ever printed, logged, or part of an error. ``ca.key`` is needed only to sign: it can be kept
elsewhere, and a rendering that needs no new certificate does without.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from contract.errors import SettingsError
from deploy import certificates, register
from deploy.certificates import Authority, Credential
from deploy.inventory import BROKER_USER, Fleet, Security

AUTHORITY, CREDENTIALS = "authority", "credentials"
CA_CERT, CA_KEY, REVOKED, ISSUED = "ca.crt", "ca.key", "revoked.crl", "issued"
FOLDER_MODE, FILE_MODE = 0o700, 0o600
_EARLIEST_YEAR = 2025  # no machine's clock is right that says less


@dataclass(frozen=True, slots=True)
class Certificates:
    """What is rendered from. ``users`` is empty where passwords say who is who."""

    ca: str
    revoked: str
    broker: Credential
    users: Mapping[str, Credential]


class CertificateStore:
    """The two folders of a fleet, locked while one process works in them: :func:`open_store`."""

    def __init__(self, folder: Path, fleet: Fleet, now: datetime) -> None:
        self._fleet, self._now = fleet, now
        self._authority, self._users = folder / AUTHORITY, folder / CREDENTIALS
        self._signer: Authority | None = None
        self._ca = self._load_ca()

    def certificates(self) -> Certificates:
        """All that the fleet needs; what is missing, has expired or does not fit is made anew."""
        users = self._fleet.users if self._fleet.security is Security.CERTIFICATES else ()
        return Certificates(
            ca=(self._authority / CA_CERT).read_text(),
            revoked=self._revocation_list(),
            broker=self._kept(BROKER_USER) or self._issue(BROKER_USER),
            users={user: self._kept(user) or self._issue(user) for user in users},
        )

    def renew(self, names: tuple[str, ...], within: timedelta) -> dict[str, datetime]:
        """New certificates for ``names``, or for all that end within some time; their new ends.

        Raises:
            SettingsError: a name that has no certificate in this fleet.
        """
        known = self._named()
        for name in names:
            if name not in known:
                raise SettingsError(
                    f"{name!r}: has no certificate in this fleet; expected some of "
                    f"{', '.join(known)}" + self._about_passwords()
                )
        due = names or tuple(name for name in known if self._ends_by(name, self._now + within))
        ends = {}
        for name in dict.fromkeys(due):
            credential = self._issue(name)
            ends[name] = certificates.read_certificate(credential.certificate).not_valid_after_utc
        return ends

    def revoke(self, name: str) -> int:
        """Make every certificate of a user worthless, and forget its key; how many there were.

        Raises:
            SettingsError: the user has none that is still good.
        """
        if name == BROKER_USER:
            raise SettingsError(
                "the broker's certificate cannot be revoked: devices do not look at the list. If "
                f"its key is lost, delete {AUTHORITY}/ and render: everybody gets a new CA"
            )
        earlier, number = certificates.read_revocation_list(self._revocation_list())
        issued = register.read(self._authority / ISSUED)
        good = {
            entry.serial
            for entry in issued
            if entry.name == name and entry.not_after > self._now and entry.serial not in earlier
        }
        if not good:
            others = dict.fromkeys(e.name for e in issued if e.name != BROKER_USER)
            raise SettingsError(
                f"{name!r}: has no certificate that is still good; certificates were given to "
                f"{', '.join(others) or 'nobody'}" + self._about_passwords()
            )
        ends = {entry.serial: entry.not_after for entry in issued}
        still = {serial for serial in earlier if ends.get(serial, self._now) >= self._now}
        self._write_revocation_list(still | good, number + 1)
        for file in self._files(name):
            file.unlink(missing_ok=True)
        return len(good)

    def _about_passwords(self) -> str:
        if self._fleet.security is Security.CERTIFICATES:
            return ""
        return (
            " (fleet.yaml says `security: passwords`: only the broker has a certificate; to change "
            f"a password, delete {CREDENTIALS}/USER and render)"
        )

    def _named(self) -> tuple[str, ...]:
        users = self._fleet.users if self._fleet.security is Security.CERTIFICATES else ()
        return (BROKER_USER, *users)

    def _files(self, name: str) -> tuple[Path, Path]:
        folder = self._authority if name == BROKER_USER else self._users
        return folder / f"{name}.crt", folder / f"{name}.key"

    def _ends_by(self, name: str, instant: datetime) -> bool:
        """Whether a certificate has ended then; one that is not there has."""
        credential = self._kept(name)
        if credential is None:
            return True
        found = certificates.read_certificate(credential.certificate)
        return found.not_valid_after_utc <= instant

    def _kept(self, name: str) -> Credential | None:
        """What is in the files, if it is good still: of this CA, with its key, not expired, and
        for the broker, under every name that it shall have."""
        files = self._files(name)
        if not all(file.exists() for file in files):
            return None
        for file in files:
            file.chmod(FILE_MODE)
        credential = Credential(*(file.read_text() for file in files))
        found = _read(files[0], credential.certificate)
        good = (
            certificates.is_signed_by(found, self._ca)
            and certificates.fits(credential.key, found)
            and found.not_valid_after_utc > self._now
        )
        if name == BROKER_USER:
            good &= certificates.addresses_of(found) == frozenset(self._fleet.broker_names)
        return credential if good else None

    def _issue(self, name: str) -> Credential:
        if name == BROKER_USER:
            names = self._fleet.broker_names
            credential = certificates.issue_to_broker(self._sign(), names, self._now)
        else:
            credential = certificates.issue_to_user(self._sign(), name, self._now)
        found = certificates.read_certificate(credential.certificate)
        # In the register first: what is not in it could not be revoked.
        register.enter(self._authority / ISSUED, name, found)
        cert_file, key_file = self._files(name)
        _write(key_file, credential.key)
        _write(cert_file, credential.certificate)
        return credential

    def _load_ca(self) -> x509.Certificate:
        file, key_file = self._authority / CA_CERT, self._authority / CA_KEY
        if not file.exists():
            if key_file.exists():
                raise SettingsError(
                    f"{file}: is not there, but its key is; put it back, or delete {AUTHORITY}/: "
                    "everybody then gets new certificates"
                )
            made = certificates.new_authority(self._fleet.cluster, self._now)
            _write(key_file, made.key)
            _write(file, made.certificate)
        file.chmod(FILE_MODE)
        ca = _read(file, file.read_text())
        if ca.not_valid_after_utc <= self._now:
            raise SettingsError(
                f"{file}: this CA has expired; delete {AUTHORITY}/ and render: everybody gets new "
                "certificates, so copy every folder again"
            )
        return ca

    def _sign(self) -> Authority:
        if self._signer is None:
            cert_file, key_file = self._authority / CA_CERT, self._authority / CA_KEY
            if not key_file.exists():
                raise SettingsError(
                    f"{key_file}: is not there, and a certificate has to be signed; put it back "
                    "for as long as this command runs"
                )
            key_file.chmod(FILE_MODE)
            try:
                self._signer = certificates.authority(
                    Credential(cert_file.read_text(), key_file.read_text())
                )
            except (ValueError, TypeError):  # without its text, which could show of the key
                raise SettingsError(
                    f"{key_file}: is not the private key of {cert_file}; put back the right one"
                ) from None
        return self._signer

    def _revocation_list(self) -> str:
        file = self._authority / REVOKED
        if not (file.exists() and certificates.is_list_of(file.read_text(), self._ca)):
            self._write_revocation_list(frozenset(), 1)
        file.chmod(FILE_MODE)
        return file.read_text()

    def _write_revocation_list(self, serials: frozenset[int] | set[int], number: int) -> None:
        text = certificates.revocation_list(self._sign(), serials, number, self._now)
        _write(self._authority / REVOKED, text)


@contextmanager
def open_store(folder: Path, fleet: Fleet, now: datetime) -> Iterator[CertificateStore]:
    """Work on the certificates of a fleet that is rendered into ``folder``; others wait.

    Raises:
        SettingsError: a file is not what it shall be, a folder cannot be used, or ``now`` is long
            past: certificates would have expired already.
    """
    if now.year < _EARLIEST_YEAR:
        raise SettingsError(
            f"this machine's clock says {now:%Y-%m-%d}: certificates would have expired already; "
            "set the clock (`timedatectl`)"
        )
    lock = -1
    try:
        for name in (AUTHORITY, CREDENTIALS):
            (folder / name).mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            (folder / name).chmod(FOLDER_MODE)
        lock = os.open(folder / AUTHORITY, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CertificateStore(folder, fleet, now)
    except (OSError, UnicodeDecodeError) as error:
        where = error.filename if isinstance(error, OSError) else None
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise SettingsError(
            f"{where or folder}: cannot keep the certificates there ({reason}); render into a "
            "folder that you may write"
        ) from error
    finally:
        if lock >= 0:
            os.close(lock)


def _read(file: Path, text: str) -> x509.Certificate:
    try:
        return certificates.read_certificate(text)
    except ValueError as error:
        raise SettingsError(
            f"{file}: is no certificate in PEM; put back the right one, or delete it: "
            "`shardline deploy render` then makes a new one"
        ) from error


def _write(file: Path, text: str) -> None:
    """Whole or not at all, and never readable for others in between."""
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            os.fchmod(handle.fileno(), FILE_MODE)
            handle.write(text)
        Path(partial).replace(file)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
