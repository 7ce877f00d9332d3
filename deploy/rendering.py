"""The calls behind `shardline deploy render`, `renew` and `revoke`: read what there is, write."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from deploy.authority import CREDENTIALS, open_store
from deploy.compose_file import COMPOSE_FILE, read_shipped
from deploy.credentials import load_or_create, password_file
from deploy.fleet_file import load_fleet
from deploy.folders import Written, write
from deploy.inventory import Fleet, Security
from deploy.render import Inputs, passwords_path, render

PLAYBOOKS = ("playbook.yml", "machine.yml", "image.yml")


class Outcome(NamedTuple):
    """The fleet, where its folders are, and what was written."""

    fleet: Fleet
    folder: Path
    written: Written


def render_fleet(
    fleet_file: Path,
    out: Path | None,
    owner: tuple[int, int],
    *,
    force: bool = False,
    now: datetime | None = None,
) -> Outcome:
    """Render the folders of a fleet into ``out``, by default beside its file.

    Raises:
        SettingsError: the fleet, a credential or the folder cannot be used.
        EnvironmentMissingError: this installation lacks the compose file.
    """
    fleet, folder = _read(fleet_file, out)
    compose_text = read_shipped(COMPOSE_FILE)
    playbooks = {name: read_shipped(f"deploy/ansible/{name}") for name in PLAYBOOKS}
    with open_store(folder, fleet, now or datetime.now(UTC)) as store:
        certificates = store.certificates()
    passwords: dict[str, str] = {}
    if fleet.security is Security.PASSWORDS:
        passwords = load_or_create(folder / CREDENTIALS, fleet.users)
    try:
        earlier = (folder / passwords_path(fleet)).read_text()
    except (OSError, UnicodeDecodeError):
        earlier = ""
    inputs = Inputs(
        fleet=fleet,
        certificates=certificates,
        passwords=passwords,
        password_file=password_file(passwords, earlier),
        compose_text=compose_text,
        playbook_texts=playbooks,
        owner=owner,
    )
    return Outcome(fleet, folder, write(folder, render(inputs), force=force))


def renew_certificates(
    fleet_file: Path,
    out: Path | None,
    names: tuple[str, ...],
    within: timedelta,
    now: datetime | None = None,
) -> dict[str, datetime]:
    """New certificates for these names, or for all that end within some time; their new ends.

    Raises:
        SettingsError: the fleet, a name or the folder cannot be used.
    """
    fleet, folder = _read(fleet_file, out)
    with open_store(folder, fleet, now or datetime.now(UTC)) as store:
        return store.renew(names, within)


def revoke_certificates(
    fleet_file: Path, out: Path | None, name: str, now: datetime | None = None
) -> tuple[Fleet, int]:
    """Revoke all certificates of a user; the fleet, and how many they were.

    Raises:
        SettingsError: the fleet or the folder cannot be used, or the user has none.
    """
    fleet, folder = _read(fleet_file, out)
    with open_store(folder, fleet, now or datetime.now(UTC)) as store:
        return fleet, store.revoke(name)


def _read(fleet_file: Path, out: Path | None) -> tuple[Fleet, Path]:
    return load_fleet(fleet_file), out if out is not None else fleet_file.parent
