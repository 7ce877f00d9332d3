"""What is wrong with a fleet's certificates, as they lie beside fleet.yaml and in its folders.

That a device has the right ones is not asked here: while it is online it has shown the broker a
certificate of this CA, and the broker has shown it one.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from deploy import certificates
from deploy.authority import AUTHORITY, CA_CERT, CA_KEY, CREDENTIALS, REVOKED
from deploy.check import Finding, Verdict
from deploy.inventory import BROKER_USER, Fleet, Security

WARNING_BEFORE, WARNING_BEFORE_CA = timedelta(days=60), timedelta(days=365)
WHAT = "certificate"
CA = "CA"
_OTHERS = 0o077
_AGAIN = "`shardline deploy render`, then copy its folder and start it anew"


def check_certificates(fleet: Fleet, folder: Path, now: datetime) -> list[Finding]:
    """One finding for the CA, for the broker, and for every user that has a certificate."""
    return list(_findings(fleet, folder, now))


def _findings(fleet: Fleet, folder: Path, now: datetime) -> Iterator[Finding]:
    ca = _read(folder / AUTHORITY / CA_CERT)
    if ca is None:
        yield _finding(
            CA,
            Verdict.WARNING,
            f"{folder / AUTHORITY / CA_CERT} is not here: certificates were not looked at",
            "check where the fleet is rendered",
        )
        return
    yield _judge_ca(folder, ca, now)
    try:
        revoked, _ = certificates.read_revocation_list(
            (folder / AUTHORITY / REVOKED).read_text(encoding="ascii")
        )
    except (OSError, ValueError):
        revoked = frozenset()
    yield _judge(fleet, folder, ca, revoked, BROKER_USER, now)
    if fleet.security is Security.CERTIFICATES:
        for user in fleet.users:
            yield _judge(fleet, folder, ca, revoked, user, now)


def _judge_ca(folder: Path, ca: x509.Certificate, now: datetime) -> Finding:
    left = ca.not_valid_after_utc - now
    detail = _until(ca, now)
    key = folder / AUTHORITY / CA_KEY
    if _is_open(key):
        return _finding(CA, Verdict.PROBLEM, f"others can read {key}", f"chmod 600 {key}")
    if left < WARNING_BEFORE_CA:
        remedy = f"delete {folder / AUTHORITY}, render, copy every folder and start everything anew"
        bad = Verdict.PROBLEM if left < timedelta() else Verdict.WARNING
        return _finding(CA, bad, detail, remedy)
    return _finding(CA, Verdict.OK, detail)


def _judge(
    fleet: Fleet,
    folder: Path,
    ca: x509.Certificate,
    revoked: frozenset[int],
    name: str,
    now: datetime,
) -> Finding:
    stem = folder / (AUTHORITY if name == BROKER_USER else CREDENTIALS) / name
    cert_file, key_file = stem.with_suffix(".crt"), stem.with_suffix(".key")
    found = _read(cert_file)
    if found is None:
        detail = f"{cert_file} is not there, or is no certificate"
        return _finding(name, Verdict.PROBLEM, detail, _AGAIN)
    if _is_open(key_file):
        detail = f"others can read {key_file}"
        return _finding(name, Verdict.PROBLEM, detail, f"chmod 600 {key_file}")
    if not certificates.is_signed_by(found, ca):
        return _finding(name, Verdict.PROBLEM, f"{cert_file} is of another CA", _AGAIN)
    if not certificates.fits(_text(key_file), found):
        return _finding(name, Verdict.PROBLEM, f"{key_file} is not its key", _AGAIN)
    if found.serial_number in revoked:
        return _finding(name, Verdict.PROBLEM, f"{cert_file} is revoked", _AGAIN)
    left = found.not_valid_after_utc - now
    renew = f"`shardline deploy renew {name}`, {_AGAIN}"
    if left < timedelta():
        return _finding(name, Verdict.PROBLEM, _until(found, now), renew)
    if left < WARNING_BEFORE:
        return _finding(name, Verdict.WARNING, _until(found, now), renew)
    if name == BROKER_USER:
        lacking = set(fleet.broker_names) - certificates.addresses_of(found)
        if lacking:
            detail = f"not for {', '.join(sorted(lacking))}"
            return _finding(name, Verdict.PROBLEM, detail, _AGAIN)
    rendered = _rendered(fleet, folder, name)
    if _text(rendered) != _text(cert_file):
        return _finding(name, Verdict.WARNING, f"{rendered} is another one", _AGAIN)
    return _finding(name, Verdict.OK, _until(found, now))


def _rendered(fleet: Fleet, folder: Path, name: str) -> Path:
    """The certificate in the folder of whoever uses it."""
    if name == BROKER_USER or name not in fleet.folders:
        return folder / fleet.broker.host / "broker" / f"{name}.crt"
    return folder / fleet.folders[name] / "secrets" / "user.crt"


def _finding(name: str, verdict: Verdict, detail: str, remedy: str = "") -> Finding:
    return Finding(device=name, what=WHAT, verdict=verdict, detail=detail, remedy=remedy)


def _until(certificate: x509.Certificate, now: datetime) -> str:
    end = certificate.not_valid_after_utc
    return f"until {end:%Y-%m-%d}, {(end - now).days} days"


def _is_open(file: Path) -> bool:
    """Whether others than its owner can get at a file; what is not there is not open."""
    try:
        return bool(file.stat().st_mode & _OTHERS)
    except OSError:
        return False


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _read(file: Path) -> x509.Certificate | None:
    try:
        return certificates.read_certificate(_text(file))
    except ValueError:
        return None
