"""From options to a connection: the one place where the command reads credentials."""

import os
from pathlib import Path

from broker.connection import Connector
from broker.tls import own_certificate
from broker.transport import TlsFiles, parse_address
from contract.errors import SettingsError

PASSWORD_VARIABLE = "SHARDLINE_PASSWORD"  # noqa: S105 the variable's name, not a password


def connect_to(
    broker: str,
    username: str | None,
    password_file: Path | None,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
) -> Connector:
    """How to connect to ``broker`` with the credentials of the options.

    With a certificate the user is whom it names, which is then in ``address.username``.

    Raises:
        SettingsError: the address is none, a file cannot be used, or ``username`` is not whom the
            certificate names.
    """
    password = os.environ.get(PASSWORD_VARIABLE)
    if password_file is not None:
        try:
            password = password_file.read_text().rstrip("\r\n")
        except OSError as error:
            raise SettingsError(
                f"--password-file {password_file}: cannot read it ({error.strerror})"
            ) from error
    tls = _tls_files(ca_file, cert_file, key_file)
    if cert_file is not None and key_file is not None:
        username = _named_by(cert_file, key_file, username)
    return Connector(parse_address(broker, username, password, tls))


def _tls_files(
    ca_file: Path | None, cert_file: Path | None, key_file: Path | None
) -> TlsFiles | None:
    if (cert_file is None) != (key_file is None):
        raise SettingsError("--cert-file and --key-file: give both, or neither")
    if ca_file is None:
        if cert_file is not None:
            raise SettingsError(
                "--cert-file: also give --ca-file, the certificate of the CA that vouches for the "
                "broker"
            )
        return None
    return TlsFiles(ca_file, cert_file, key_file)


def _named_by(cert_file: Path, key_file: Path, username: str | None) -> str:
    """Whom the certificate names: the broker takes that for the user name, whatever we say."""
    name = own_certificate(cert_file, key_file).common_name
    if username not in (None, name):
        raise SettingsError(
            f"{cert_file}: is the certificate of {name!r}, and the user shall be {username!r}; "
            f"use the certificate of {username!r}, or {name!r} as --username (a stage: --device)"
        )
    return name
