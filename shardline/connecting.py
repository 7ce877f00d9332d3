"""From options to a connection: the one place where the command reads a password."""

import os
from pathlib import Path

from broker.connection import Connector
from broker.transport import parse_address
from contract.errors import SettingsError

PASSWORD_VARIABLE = "SHARDLINE_PASSWORD"  # noqa: S105 the variable's name, not a password


def connect_to(broker: str, username: str | None, password_file: Path | None) -> Connector:
    """How to connect to ``broker`` with the credentials of the options.

    Raises:
        SettingsError: the address is none, or the password file cannot be read.
    """
    password = os.environ.get(PASSWORD_VARIABLE)
    if password_file is not None:
        try:
            password = password_file.read_text().rstrip("\r\n")
        except OSError as error:
            raise SettingsError(
                f"--password-file {password_file}: cannot read it ({error.strerror})"
            ) from error
    return Connector(parse_address(broker, username, password))
