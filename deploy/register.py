"""The register of every certificate that a fleet's CA ever signed: what is not in it cannot be
revoked. One line each: serial number, whom it was given to, until when it is good.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from contract.errors import SettingsError

_FILE_MODE = 0o600


class Issued(NamedTuple):
    """One line."""

    serial: int
    name: str
    not_after: datetime


def enter(file: Path, name: str, certificate: x509.Certificate) -> None:
    """Add a line."""
    serial, end = certificate.serial_number, certificate.not_valid_after_utc
    with file.open("a") as register:
        os.fchmod(register.fileno(), _FILE_MODE)
        register.write(f"{serial:x} {name} {end.isoformat()}\n")


def read(file: Path) -> list[Issued]:
    """All of it; empty where nothing was signed yet.

    Raises:
        SettingsError: a line that is none.
    """
    entries = []
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else (), 1):
        try:
            serial, name, not_after = line.split()
            entries.append(Issued(int(serial, 16), name, datetime.fromisoformat(not_after)))
        except ValueError as error:
            raise SettingsError(
                f"{file} line {number}: expected SERIAL NAME END; put back the file as it was, "
                "without it nothing can be revoked"
            ) from error
    return entries
