"""From a fleet and its passwords to every file of every folder. Pure: nothing is read or written.

.gitignore                    keeps passwords out of a repository
<machine>/                    what is copied to a Pi, or to the broker's own host
    docker-compose.yml  .env  README.txt
    secrets/password          its user's at the broker (devices only)
    broker/                   mosquitto.conf, acl, passwords, health (the broker's host only)
planner/                      for this machine: .env, docker-compose.yml, secrets/password
clients/<name>/               the same, with a folder for results
observers/<name>/             .env, mosquitto_sub (its options), secrets/password
ansible/                      a playbook that copies and starts all of it, and its inventory
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from broker.mosquitto_conf import FleetBrokerSettings, render_fleet_conf
from deploy.acl import render_acl
from deploy.compose_file import for_a_machine
from deploy.env_file import PASSWORD, machine_env, user_env
from deploy.inventory import HEALTH_USER, Fleet, Machine
from deploy.readme import (
    broker_host_readme,
    client_readme,
    device_readme,
    observer_readme,
    planner_readme,
)

PUBLIC, SECRET = 0o644, 0o600
SECRET_FOLDERS = frozenset({"broker", "credentials", "secrets"})
PASSWORDS = "broker/passwords"


class Rendered(NamedTuple):
    """What one file shall hold, and its mode."""

    text: str
    mode: int = PUBLIC


Files = dict[PurePosixPath, Rendered]


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that rendering depends on. The passwords never show in a repr."""

    fleet: Fleet
    passwords: Mapping[str, str]
    password_file: str
    compose_text: str
    playbook_texts: Mapping[str, str]
    owner: tuple[int, int]

    def __repr__(self) -> str:
        return f"Inputs({self.fleet!r})"


def render(inputs: Inputs) -> Files:
    """Every file by its path below the output folder."""
    fleet = inputs.fleet
    files: Files = {PurePosixPath(".gitignore"): Rendered("*\n!.gitignore\n!fleet.yaml\n")}
    for machine in fleet.machines:
        _add(files, machine.name, _machine_files(inputs, machine))
    _add(files, "planner", _planner_files(inputs))
    for name in fleet.clients:
        _add(files, f"clients/{name}", _client_files(inputs, name))
    for name in fleet.observers:
        _add(files, f"observers/{name}", _observer_files(inputs, name))
    playbooks = {name: Rendered(text) for name, text in inputs.playbook_texts.items()}
    _add(files, "ansible", {**playbooks, "inventory.ini": Rendered(render_inventory(fleet))})
    return files


def is_secret_folder(path: PurePosixPath) -> bool:
    """Whether only its owner may look into this folder."""
    return path.name in SECRET_FOLDERS


def passwords_path(fleet: Fleet) -> PurePosixPath:
    """Where the broker's password file is, below the output folder."""
    return PurePosixPath(fleet.broker.host) / PASSWORDS


def render_inventory(fleet: Fleet) -> str:
    """Ansible's inventory: the broker's host first, since stages wait for it."""
    lines = []
    for group, wanted in (("broker", True), ("devices", False)):
        lines += [f"[{group}]"]
        lines += [
            f"{machine.name} ansible_host={machine.address} ansible_user={machine.user}"
            for machine in fleet.machines
            if machine.runs_broker == wanted
        ]
        lines += [""]
    return "\n".join(lines)


def _add(files: Files, folder: str, content: Mapping[str, Rendered]) -> None:
    for name, rendered in content.items():
        files[PurePosixPath(folder) / name] = rendered


def _machine_files(inputs: Inputs, machine: Machine) -> dict[str, Rendered]:
    fleet, has_stage = inputs.fleet, machine.device is not None
    readme = device_readme if has_stage else broker_host_readme
    files = {
        "README.txt": Rendered(readme(fleet, machine)),
        "docker-compose.yml": Rendered(for_a_machine(inputs.compose_text, stage=has_stage)),
        ".env": Rendered(machine_env(fleet, machine)),
    }
    if has_stage:
        files[PASSWORD] = _password(inputs, machine.name)
    if machine.runs_broker:
        health = f"-u {HEALTH_USER}\n-P {inputs.passwords[HEALTH_USER]}\n"
        files |= {
            "broker/mosquitto.conf": Rendered(render_fleet_conf(FleetBrokerSettings())),
            "broker/acl": Rendered(render_acl(fleet), SECRET),
            PASSWORDS: Rendered(inputs.password_file, SECRET),
            "broker/health": Rendered(health, SECRET),
        }
    return files


def _planner_files(inputs: Inputs) -> dict[str, Rendered]:
    return {
        "README.txt": Rendered(planner_readme(inputs.fleet)),
        **_user_files(inputs, inputs.fleet.planner, compose=True),
    }


def _client_files(inputs: Inputs, name: str) -> dict[str, Rendered]:
    return {
        "README.txt": Rendered(client_readme(inputs.fleet, name)),
        **_user_files(inputs, name, compose=True),
        # The engine would make missing folders as root, and the client could not write there.
        "results/.keep": Rendered(""),
        "pictures/.keep": Rendered(""),
    }


def _observer_files(inputs: Inputs, name: str) -> dict[str, Rendered]:
    fleet, password = inputs.fleet, inputs.passwords[name]
    options = {
        "-h": fleet.broker_address,
        "-p": fleet.broker.port,
        "-u": name,
        "-P": password,
    }
    text = "".join(f"{option} {value}\n" for option, value in options.items())
    return {
        "README.txt": Rendered(observer_readme(fleet, name)),
        **_user_files(inputs, name, compose=False),
        "mosquitto_sub": Rendered(text, SECRET),
    }


def _user_files(inputs: Inputs, user: str, *, compose: bool) -> dict[str, Rendered]:
    files = {
        ".env": Rendered(user_env(inputs.fleet, user, inputs.owner)),
        PASSWORD: _password(inputs, user),
    }
    if compose:
        text = for_a_machine(inputs.compose_text, stage=False)
        files["docker-compose.yml"] = Rendered(text)
    return files


def _password(inputs: Inputs, user: str) -> Rendered:
    return Rendered(inputs.passwords[user] + "\n", SECRET)
