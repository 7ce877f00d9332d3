"""The compose file of a rendered folder: the one at the root of the repository, less some blocks,
and with a password in place of the certificate where the fleet has passwords.

It is cut as text, so that its comments stay and both versions of Compose read what was tested. A
block begins with a key at some indentation and ends before the next line that is not deeper.
"""

import re
from pathlib import Path

import deploy
from contract.errors import EnvironmentMissingError
from deploy.inventory import BROKER_SERVICE, Security

COMPOSE_FILE = "docker-compose.arm64.yml"
STAGE, PLANNER, CLIENT, DASHBOARD = "stage", "planner", "client", "dashboard"
SERVICES = (STAGE, BROKER_SERVICE, PLANNER, CLIENT, DASHBOARD)
_CERTIFICATE = re.compile(
    r"^( +)SHARDLINE_CERT_FILE: (.*)user\.crt\n +SHARDLINE_KEY_FILE: .*\n", flags=re.MULTILINE
)


def read_shipped(path: str) -> str:
    """A file that is shipped beside the packages, by its path from the root of the repository.

    Raises:
        EnvironmentMissingError: this installation does not have it.
    """
    file = Path(deploy.__file__).parents[1] / path
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise EnvironmentMissingError(
            f"{file}: cannot read it ({error.strerror}); `shardline deploy render` needs the whole "
            "repository or the planner image, not the Python packages alone"
        ) from error


def for_a_machine(text: str, security: Security, *, stage: bool) -> str:
    """The file without its build blocks; without the stage on a machine that shall run none.

    The stage is the one service that plain `docker compose up` starts, and both versions of Compose
    start what is in the file: a service that is not to run must not be there.
    """
    for service in SERVICES:
        text = _without(text, "services", service, "build")
    if security is Security.PASSWORDS:
        text, replaced = _CERTIFICATE.subn(r"\1SHARDLINE_PASSWORD_FILE: \2password\n", text)
        if replaced != len(SERVICES) - 1:  # all but the broker
            raise ValueError(f"{COMPOSE_FILE}: expected a SHARDLINE_CERT_FILE for each user")
    if not stage:
        text = _without(text, "services", STAGE)
        text = _without(text, "volumes", "cache")
    return text


def _without(text: str, *keys: str) -> str:
    """``text`` less the block that ``keys`` lead to.

    Raises:
        ValueError: there is no such block.
    """
    lines = text.splitlines(keepends=True)
    start, end = 0, len(lines)
    for depth, key in enumerate(keys):
        head = f"{'  ' * depth}{key}:"
        found = [
            i
            for i in range(start, end)
            if lines[i].rstrip() == head or (lines[i].startswith(head + " "))
        ]
        if len(found) != 1:
            raise ValueError(f"{COMPOSE_FILE}: expected one block {'.'.join(keys)}")
        start = found[0]
        end = _end(lines, start, depth)
        if depth + 1 < len(keys):
            start += 1
    return "".join((*lines[:start], *lines[end:]))


def _end(lines: list[str], start: int, depth: int) -> int:
    """Index of the line after the block that begins at ``start``; blank lines belong to it."""
    deeper = "  " * (depth + 1)
    index = start + 1
    while index < len(lines) and (not lines[index].strip() or lines[index].startswith(deeper)):
        index += 1
    return index
