"""The one call behind `shardline deploy render`: reads what there is, renders, writes."""

from pathlib import Path
from typing import NamedTuple

from deploy.compose_file import COMPOSE_FILE, read_shipped
from deploy.credentials import load_or_create, password_file
from deploy.fleet_file import load_fleet
from deploy.folders import Written, write
from deploy.inventory import Fleet
from deploy.render import Inputs, passwords_path, render

CREDENTIALS = "credentials"
PLAYBOOKS = ("playbook.yml", "machine.yml", "image.yml")


class Outcome(NamedTuple):
    """The fleet, where its folders are, and what was written."""

    fleet: Fleet
    folder: Path
    written: Written


def render_fleet(
    fleet_file: Path, out: Path | None, owner: tuple[int, int], *, force: bool = False
) -> Outcome:
    """Render the folders of a fleet into ``out``, by default beside its file.

    Raises:
        SettingsError: the fleet, a password or the folder cannot be used.
        EnvironmentMissingError: this installation lacks the compose file.
    """
    fleet = load_fleet(fleet_file)
    folder = out if out is not None else fleet_file.parent
    compose_text = read_shipped(COMPOSE_FILE)
    playbooks = {name: read_shipped(f"deploy/ansible/{name}") for name in PLAYBOOKS}
    passwords = load_or_create(folder / CREDENTIALS, fleet.users)
    try:
        earlier = (folder / passwords_path(fleet)).read_text()
    except (OSError, UnicodeDecodeError):
        earlier = ""
    inputs = Inputs(
        fleet=fleet,
        passwords=passwords,
        password_file=password_file(passwords, earlier),
        compose_text=compose_text,
        playbook_texts=playbooks,
        owner=owner,
    )
    return Outcome(fleet, folder, write(folder, render(inputs), force=force))
