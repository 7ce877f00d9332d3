"""The fleet.yaml that `shardline deploy init` writes: commented, to be corrected. Pure."""

import json
from typing import NamedTuple

from contract.errors import SettingsError
from contract.kind import Kind
from deploy.fields import PLACEHOLDER
from deploy.fleet_file import parse_fleet
from deploy.inventory import Security
from deploy.kinds import KINDS


class NewMachine(NamedTuple):
    """What is known of a machine when the file is written."""

    name: str
    address: str = PLACEHOLDER


def parse_new_machine(flag: str, text: str) -> NewMachine:
    """``NAME=ADDRESS``.

    Raises:
        SettingsError: not such a text.
    """
    name, separator, address = text.partition("=")
    if not (name and separator and address):
        raise SettingsError(f"{flag} {text!r}: expected NAME=ADDRESS, as pi-0=192.168.1.20")
    return NewMachine(name, address)


def numbered_machines(count: int) -> list[NewMachine]:
    """``pi-0``, ``pi-1``, …, whose addresses are still to be written."""
    return [NewMachine(f"pi-{index}") for index in range(count)]


def example_fleet(
    devices: list[NewMachine],
    kind: Kind,
    cluster: str,
    broker_host: NewMachine,
    security: Security = Security.CERTIFICATES,
) -> str:
    """The text. It is checked: only addresses may still be missing in it.

    Raises:
        SettingsError: a name or an address that a fleet cannot have.
    """
    filled = _text(
        [NewMachine(d.name, _filled(d.address)) for d in devices],
        *(kind, cluster, NewMachine(broker_host.name, _filled(broker_host.address)), security),
    )
    parse_fleet(filled, "the new fleet")
    return _text(devices, kind, cluster, broker_host, security)


def _filled(address: str) -> str:
    return "192.0.2.1" if address == PLACEHOLDER else address  # RFC 5737: for documentation


def _text(
    devices: list[NewMachine], kind: Kind, cluster: str, broker: NewMachine, security: Security
) -> str:
    on_a_device = broker.name in {device.name for device in devices}
    own = "" if on_a_device else f"\n  address: {_quoted(broker.address)}"
    entries = "\n".join(
        f"  - name: {_quoted(device.name)}\n    address: {_quoted(device.address)}\n"
        f"    kind: {kind}"
        for device in devices
    )
    kinds = ", ".join(KINDS)
    return f"""\
# The machines of one cluster. `shardline deploy render` turns this file into a folder for each.
# Every field: docs/deploy.md. Names are letters, digits, - and _; no two may be the same.

cluster: {_quoted(cluster)}

# How users show the broker who they are: {", ".join(Security)}. All is TLS either way.
security: {security}

# Where Mosquitto runs: the name of a device below, or another machine with its own `address`.
# Every machine connects to it there; containers cannot look up names that end in .local.
# Optional: names, a list of further addresses that its certificate shall be good for.
broker:
  host: {_quoted(broker.name)}{own}
  port: 8883

# One stage runs on each. kind: {kinds}
# Optional: memory (limit of the stage, as 512m), user (for ssh, default pi), uid and gid (that
# user's, default 1000); for planning alone speed, cores, link and profile.
devices:
{entries}

# Users of the broker, each with a credential of its own. One process can use a user at a time:
# name as many clients and observers as there shall be at once.
planner: planner
clients:
  - client
observers:
  - observer
# Optional: home_assistant, the name of a user that tells Home Assistant what there is to show.
"""


def _quoted(text: str) -> str:
    """As JSON writes it, which YAML reads: whatever a flag holds, it stays one text."""
    return json.dumps(text)
