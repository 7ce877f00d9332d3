"""One generated password for each user of the broker, and Mosquitto's file of their hashes.

A password is in `credentials/<user>`, mode 0600, in a folder of mode 0700, and in the one rendered
folder that needs it. It is never printed, logged, or part of an error. A file that is there is
kept, so rendering again changes nothing; to change a password, delete its file and render again.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from contract.errors import SettingsError

PASSWORD_BYTES = 24
FOLDER_MODE = 0o700
FILE_MODE = 0o600
ITERATIONS = 1000
"""Random passwords of 192 bits need no slow hash, and the broker computes it in its one thread for
every connection. mosquitto_passwd itself uses 101."""
_MAX_ITERATIONS = 10_000_000
_SALT_BYTES = 12  # the only length that Mosquitto 2.0 reads
_HASH_BYTES = 64
_PASSWORD = re.compile(r"[!-~]{8,256}")


def load_or_create(folder: Path, users: Iterable[str]) -> dict[str, str]:
    """The password of each user: what its file holds, or a new one.

    Raises:
        SettingsError: a file holds no password, or the folder cannot be used.
    """
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)
        return {user: _load_or_create(folder / user) for user in users}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise SettingsError(
            f"{folder}: cannot keep the passwords there ({reason}); render into a folder that you "
            "may write, or delete the file that is no password"
        ) from error


def _load_or_create(file: Path) -> str:
    try:
        # Exclusive: two renders at once must not each believe in a password of their own.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    except FileExistsError:
        file.chmod(FILE_MODE)
        password = file.read_text().rstrip("\r\n")
        if not _PASSWORD.fullmatch(password):
            raise SettingsError(
                f"{file}: expected one line of 8 to 256 printable characters without spaces; "
                "delete the file, then `shardline deploy render` writes a new password"
            ) from None
        return password
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(password + "\n")
    return password


def password_file(passwords: Mapping[str, str], earlier: str = "") -> str:
    """Mosquitto's password file. Lines of ``earlier`` that still hold are kept as they are."""
    known = {line.partition(":")[0]: line for line in earlier.splitlines()}
    lines = []
    for user, password in passwords.items():
        line = known.get(user, "")
        lines.append(line if verify(line, user, password) else hash_line(user, password))
    return "".join(f"{line}\n" for line in lines)


def hash_line(user: str, password: str, salt: bytes | None = None) -> str:
    """``user:$7$iterations$salt$hash``: PBKDF2 with HMAC-SHA-512, as mosquitto_passwd writes it."""
    salt = salt if salt is not None else secrets.token_bytes(_SALT_BYTES)
    digest = _digest(password, salt, ITERATIONS)
    return f"{user}:$7${ITERATIONS}${_encode(salt)}${_encode(digest)}"


def verify(line: str, user: str, password: str) -> bool:
    """Whether a line of a password file is this user's with this password."""
    name, _, rest = line.partition(":")
    match rest.split("$"):
        case ["", "7", iterations, salt, digest] if name == user and iterations.isdecimal():
            pass
        case _:
            return False
    if not 0 < int(iterations) <= _MAX_ITERATIONS:
        return False
    try:
        expected = base64.b64decode(digest, validate=True)
        actual = _digest(password, base64.b64decode(salt, validate=True), int(iterations))
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(expected, actual)


def _digest(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations, _HASH_BYTES)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
