"""From a fleet and its credentials to every file of every folder. Pure: reads and writes nothing.

.gitignore                    keeps keys and passwords out of a repository
<machine>/                    what is copied to a Pi, or to the broker's own host
    docker-compose.yml  .env  README.txt
    secrets/                  ca.crt; user.crt and user.key, or password (devices only)
    broker/                   mosquitto.conf and all that it names (the broker's host only)
planner/                      for this machine: .env, docker-compose.yml, secrets/
clients/<name>/               the same, with a folder for results
observers/<name>/             the same without results, and mosquitto_sub: its options;
                              who tells Home Assistant has .env and secrets/ only
ansible/                      a playbook that copies and starts all of it, and its inventory
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from broker.mosquitto_conf import CONFIG_FOLDER, FleetBrokerSettings, render_fleet_conf
from deploy.acl import render_acl
from deploy.authority import Certificates
from deploy.compose_file import for_a_machine
from deploy.env_file import (
    CA_CERT,
    CONTAINER_PORT,
    PASSWORD,
    USER_CERT,
    USER_KEY,
    machine_env,
    user_env,
)
from deploy.inventory import HEALTH_USER, Fleet, Machine, Security
from deploy.readme import (
    announcer_readme,
    broker_host_readme,
    client_readme,
    device_readme,
    observer_readme,
    planner_readme,
)

PUBLIC, SECRET = 0o644, 0o600
SECRET_FOLDERS = frozenset({"authority", "broker", "credentials", "secrets"})
PASSWORDS = "broker/passwords"


class Rendered(NamedTuple):
    """What one file shall hold, and its mode."""

    text: str
    mode: int = PUBLIC


Files = dict[PurePosixPath, Rendered]


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that rendering depends on. Keys and passwords never show in a repr.

    ``passwords`` and ``password_file`` are empty where certificates say who is who.
    """

    fleet: Fleet
    certificates: Certificates
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
    for name in fleet.announcers:
        _add(files, f"observers/{name}", _announcer_files(inputs, name))
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
        "docker-compose.yml": _compose(inputs, stage=has_stage),
        ".env": Rendered(machine_env(fleet, machine)),
    }
    if has_stage:
        files |= _secrets(inputs, machine.name)
    if machine.runs_broker:
        files |= {f"broker/{name}": file for name, file in _broker_files(inputs).items()}
    return files


def _broker_files(inputs: Inputs) -> dict[str, Rendered]:
    fleet, certificates = inputs.fleet, inputs.certificates
    by_password = fleet.security is Security.PASSWORDS
    passwords = f"{CONFIG_FOLDER}/passwords" if by_password else None
    settings = FleetBrokerSettings(password_file=passwords)
    files = {
        "mosquitto.conf": Rendered(render_fleet_conf(settings)),
        "acl": Rendered(render_acl(fleet), SECRET),
        "ca.crt": Rendered(certificates.ca, SECRET),
        "broker.crt": Rendered(certificates.broker.certificate, SECRET),
        "broker.key": Rendered(certificates.broker.key, SECRET),
    }
    # Of mosquitto_sub, which is the health check and finds them here.
    options = {"-p": str(CONTAINER_PORT), "--cafile": f"{CONFIG_FOLDER}/ca.crt"}
    if by_password:
        files["passwords"] = Rendered(inputs.password_file, SECRET)
        options |= {"-u": HEALTH_USER, "-P": inputs.passwords[HEALTH_USER]}
    else:
        health = certificates.users[HEALTH_USER]
        files |= {
            "revoked.crl": Rendered(certificates.revoked, SECRET),
            "health.crt": Rendered(health.certificate, SECRET),
            "health.key": Rendered(health.key, SECRET),
        }
        options |= {
            "--cert": f"{CONFIG_FOLDER}/health.crt",
            "--key": f"{CONFIG_FOLDER}/health.key",
        }
    return files | {"mosquitto_sub": _options(options)}


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
    fleet = inputs.fleet
    options = {"-h": fleet.broker_address, "-p": str(fleet.broker.port), "--cafile": CA_CERT}
    if fleet.security is Security.PASSWORDS:
        options |= {"-u": name, "-P": inputs.passwords[name]}
    else:
        options |= {"--cert": USER_CERT, "--key": USER_KEY}
    return {
        "README.txt": Rendered(observer_readme(fleet, name)),
        **_user_files(inputs, name, compose=True),
        "mosquitto_sub": _options(options),
    }


def _announcer_files(inputs: Inputs, name: str) -> dict[str, Rendered]:
    return {
        "README.txt": Rendered(announcer_readme(inputs.fleet, name)),
        **_user_files(inputs, name, compose=False),
    }


def _user_files(inputs: Inputs, user: str, *, compose: bool) -> dict[str, Rendered]:
    files = {
        ".env": Rendered(user_env(inputs.fleet, user, inputs.owner)),
        **_secrets(inputs, user),
    }
    if compose:
        files["docker-compose.yml"] = _compose(inputs, stage=False)
    return files


def _compose(inputs: Inputs, *, stage: bool) -> Rendered:
    return Rendered(for_a_machine(inputs.compose_text, inputs.fleet.security, stage=stage))


def _secrets(inputs: Inputs, user: str) -> dict[str, Rendered]:
    """Who vouches for the broker, and what shows the broker who this user is."""
    files = {CA_CERT: Rendered(inputs.certificates.ca, SECRET)}
    if inputs.fleet.security is Security.PASSWORDS:
        return files | {PASSWORD: Rendered(inputs.passwords[user] + "\n", SECRET)}
    shown = inputs.certificates.users[user]
    return files | {
        USER_CERT: Rendered(shown.certificate, SECRET),
        USER_KEY: Rendered(shown.key, SECRET),
    }


def _options(options: Mapping[str, str]) -> Rendered:
    """A file of mosquitto_sub's options, one a line."""
    return Rendered("".join(f"{option} {value}\n" for option, value in options.items()), SECRET)
