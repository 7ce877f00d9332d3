"""What TLS needs of us: a context from files, our own name by our certificate, and each failure in
a person's words.

The broker's certificate is always checked, chain and name; nothing here can switch that off. A
refusal of *our* certificate comes late with TLS 1.3, as an alert in place of the broker's first
answer, since the client has finished its handshake by then (RFC 8446, section 2).
"""

import ssl
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from broker.transport import TlsFiles
from contract.errors import (
    BrokerError,
    BrokerUnreachableError,
    BrokerUntrustedError,
    NotAuthorisedError,
    SettingsError,
)

# Codes of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAME = frozenset({62, 64})  # host name, IP address
_FLIGHTS = 4  # a handshake of TLS 1.3 needs two in each direction

_ALERTS = {
    "CERTIFICATE_REQUIRED": "wants a certificate of whoever connects: give --cert-file and "
    "--key-file",
    "HANDSHAKE_FAILURE": "ends the TLS handshake: if it wants a certificate of whoever connects, "
    "give --cert-file and --key-file",
    "CERTIFICATE_REVOKED": "has revoked our certificate: `shardline deploy render` makes a new one "
    "for a user that fleet.yaml still names; copy its folder here again",
    "CERTIFICATE_EXPIRED": "says that our certificate has expired: `shardline deploy renew` and "
    "`shardline deploy render`, then copy the folder here again; or the broker's clock is wrong",
    "UNKNOWN_CA": "does not know the CA of our certificate: the folder here is of another "
    "rendering, copy it again",
    "BAD_CERTIFICATE": "refuses our certificate: copy the folder here again; or the broker's clock "
    "is wrong. Its log says more",
}
"""By part of the name that Python gives an alert. Names: RFC 8446, section 6.2."""


class OwnCertificate(NamedTuple):
    """Whom a certificate names, and until when it is good, in seconds since 1970 (UTC)."""

    common_name: str
    not_after_unix_s: float


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 or later with a broker that ``ca_file`` vouches for, under the name we call it by.

    Raises:
        SettingsError: a file cannot be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the host's name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=files.ca_file)
    except OSError as error:
        _unusable(files.ca_file, "the certificate of a CA", error)
    if files.cert_file is not None and files.key_file is not None:
        _show(context, files.cert_file, files.key_file)
    elif files.cert_file is not None or files.key_file is not None:
        raise SettingsError("--cert-file and --key-file: give both, or neither")
    return context


def own_certificate(cert_file: Path, key_file: Path) -> OwnCertificate:
    """Read from the certificate that we show a broker.

    The standard library tells only what a *peer's* certificate says. So we show it to ourselves,
    through memory; that it has not expired and belongs to the key is thereby checked as well.

    Raises:
        SettingsError: a file cannot be used, or the certificate is none to show: it has expired, is
            for a broker, or names nobody.
    """
    host = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _show(host, cert_file, key_file)
    host.load_verify_locations(cafile=cert_file)  # for once it vouches for itself
    host.verify_mode = ssl.CERT_REQUIRED
    host.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    guest = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    guest.check_hostname = False
    guest.verify_mode = ssl.CERT_NONE  # what the guest thinks of its host does not matter
    _show(guest, cert_file, key_file)
    to_host, to_guest = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_guest = guest.wrap_bio(to_guest, to_host)
    at_host = host.wrap_bio(to_host, to_guest, server_side=True)
    try:
        for _ in range(_FLIGHTS):
            for side in (at_guest, at_host):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        found = at_host.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            raise SettingsError(
                f"{cert_file}: has expired by {_this_clock()}; if the clock is right, "
                "`shardline deploy renew` and `shardline deploy render`, then copy the folder here "
                "again"
            ) from error
        raise SettingsError(
            f"{cert_file}: is no certificate of a user ({error.verify_message}); expected the one "
            "that `shardline deploy render` writes into secrets/user.crt"
        ) from error
    # Of names in names in names: RFC 5280, section 4.1.2.4.
    subject: Any = found.get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if not names:
        raise SettingsError(f"{cert_file}: names nobody (no common name); use another certificate")
    return OwnCertificate(names[0], ssl.cert_time_to_seconds(str(found["notAfter"])))


def explain(error: ssl.SSLError, where: str, files: TlsFiles) -> BrokerError:
    """Why there is no connection with the broker at ``where``, and what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_verification(error, where, files)
    reason = error.reason or ""
    for alert, meaning in _ALERTS.items():
        if "ALERT" in reason and alert in reason:
            return NotAuthorisedError(f"the broker at {where} {meaning}")
    if "ALERT" in reason and "CERTIFICATE" in reason:
        return NotAuthorisedError(f"the broker at {where} {_ALERTS['BAD_CERTIFICATE']}")
    return BrokerUnreachableError(
        f"no TLS with the broker at {where} ({_words(reason) or error}): is that its TLS port, "
        "8883? Leave --ca-file out for a broker without TLS"
    )


def may_pass(error: ssl.SSLError) -> bool:
    """Whether waiting can help: a clock that is still to be set, a broker that is just starting."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_code == _NOT_YET_VALID
    return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def _explain_verification(
    error: ssl.SSLCertVerificationError, where: str, files: TlsFiles
) -> BrokerError:
    if error.verify_code == _NOT_YET_VALID:
        return BrokerUntrustedError(
            f"the certificate of the broker at {where} is not valid yet by {_this_clock()}: the "
            "clock is probably wrong, a Pi has none while it is off; `timedatectl` shows it, "
            "`sudo timedatectl set-ntp true` sets it from the network"
        )
    if error.verify_code == _EXPIRED:
        return BrokerUntrustedError(
            f"the certificate of the broker at {where} has expired by {_this_clock()}; if the "
            "clock is right, `shardline deploy renew broker` and `shardline deploy render`, copy "
            "the broker's folder and restart the broker"
        )
    if error.verify_code in _OTHER_NAME:
        return BrokerUntrustedError(
            f"the broker at {where} shows a certificate for other names ({error.verify_message}): "
            "connect to its address in fleet.yaml, or add this one to `broker.names` there and "
            "render"
        )
    return BrokerUntrustedError(
        f"the broker at {where} shows a certificate that {files.ca_file} does not vouch for "
        f"({error.verify_message}): it is another broker, or the folder here is of another "
        "rendering; copy it again"
    )


def _show(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    for file, what in ((cert_file, "a certificate"), (key_file, "a private key")):
        try:
            file.open("rb").close()  # else the error would not say which of the two it is
        except OSError as error:
            _unusable(file, what, error)
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(
                f"{key_file}: is not the key of {cert_file}; copy both from one rendering"
            ) from error
        _unusable(cert_file, f"a certificate, with {key_file} as its key", error)


def _no_passphrase() -> str:
    """Instead of OpenSSL's question on the terminal, which a stage could never answer."""
    raise SettingsError("--key-file: the key is encrypted; expected one without a passphrase")


def _unusable(file: Path, as_what: str, error: OSError) -> NoReturn:
    if isinstance(error, ssl.SSLError):
        why = _words(error.reason or "") or "no PEM"
        remedy = "expected PEM, as `shardline deploy render` writes it into secrets/"
    else:
        why = error.strerror or str(error)
        remedy = "in a container, the user of .env (SHARDLINE_UID) must own it"
    raise SettingsError(f"{file}: cannot use it as {as_what} ({why}); {remedy}") from error


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")


def _this_clock() -> str:
    return f"this machine's clock, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
