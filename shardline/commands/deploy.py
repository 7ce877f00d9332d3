"""`shardline deploy`: from one fleet.yaml to a folder for every machine, `init` and `render`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contract.errors import SettingsError
from shardline import options
from shardline.commands import deploy_certificates, deploy_check
from shardline.options import option

if TYPE_CHECKING:
    from rich.table import Table

    from deploy.rendering import Outcome

DEFAULT_KIND = "raspberry-pi-4"

app = typer.Typer(
    help="From one fleet.yaml to a folder for each machine: compose file, credential, rights.",
    no_args_is_help=True,
)


@app.command()
def init(
    devices: Annotated[
        int | None,
        option(
            "--devices", "How many devices: pi-0, pi-1, …", variable="FLEET_SIZE", min=1, max=999
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        option(
            "--device",
            "NAME=ADDRESS of a device; repeatable, instead of --devices.",
            variable="FLEET_DEVICES",
        ),
    ] = None,
    kind: Annotated[
        str, option("--kind", "What the devices are; docs/deploy.md lists the kinds.")
    ] = DEFAULT_KIND,
    broker_host: Annotated[
        str | None,
        option(
            "--broker-host",
            "Device that runs the broker, or NAME=ADDRESS of another machine; default: the first.",
        ),
    ] = None,
    security: Annotated[
        str, option("--security", "How users show who they are: certificates or passwords.")
    ] = "certificates",
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    fleet: options.FleetFile = options.FLEET_FILE,
) -> None:
    """Write a commented fleet.yaml to start from."""
    from contract.kind import Kind
    from deploy import example
    from deploy.fields import PLACEHOLDER
    from deploy.inventory import Security
    from shardline.console import out

    if (devices is None) == (not device):
        raise SettingsError("give either --devices N, or --device NAME=ADDRESS for each device")
    if kind not in list(Kind):
        raise SettingsError(f"--kind {kind!r}: expected one of {', '.join(Kind)}")
    if security not in list(Security):
        raise SettingsError(f"--security {security!r}: expected one of {', '.join(Security)}")
    machines = (
        [example.parse_new_machine("--device", text) for text in device]
        if device
        else example.numbered_machines(devices or 0)
    )
    host = machines[0]
    if broker_host is not None:
        known = {machine.name: machine for machine in machines}
        host = known.get(broker_host) or example.parse_new_machine("--broker-host", broker_host)
    text = example.example_fleet(machines, Kind(kind), cluster, host, Security(security))
    try:
        fleet.parent.mkdir(parents=True, exist_ok=True)
        with fleet.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SettingsError(
            f"{fleet}: is there already and is left as it is; edit it, move it away, or name "
            "another file with --fleet"
        ) from error
    except OSError as error:
        raise SettingsError(
            f"{fleet}: cannot write it ({error.strerror}); name another file with --fleet"
        ) from error
    out.print(f"{fleet} is written, with {len(machines)} devices", markup=False)
    if PLACEHOLDER in text:
        out.print(f"put an address wherever it says {PLACEHOLDER}", markup=False)
    out.print(f"next: shardline deploy render{_fleet_flag(fleet)}", markup=False)


@app.command()
def render(
    fleet: options.FleetFile = options.FLEET_FILE,
    folder: deploy_certificates.Folder = None,
    force: Annotated[
        bool, option("--force", "Replace files that were changed by hand, too.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write a folder for every machine and every user. Credentials are made once and then kept."""
    deploy_certificates.need_cryptography()
    from deploy.inventory import DEFAULT_UNIX_ID
    from deploy.rendering import render_fleet
    from shardline.console import err, out, print_json

    by_root = os.getuid() == 0
    owner = (DEFAULT_UNIX_ID, DEFAULT_UNIX_ID) if by_root else (os.getuid(), os.getgid())
    outcome = render_fleet(fleet, folder, owner, force=force)
    if by_root:  # no container runs as root, and these files are root's
        err.print(
            f"rendered by root; containers run as user {DEFAULT_UNIX_ID}, so give it the files: "
            f"chown -R {DEFAULT_UNIX_ID}:{DEFAULT_UNIX_ID} {outcome.folder}",
            markup=False,
            soft_wrap=True,
        )
    if as_json:
        print_json(_summary(outcome))
        return
    out.print(_folders_table(outcome))
    changes = outcome.written
    out.print(f"{len(changes.written)} files written, {len(changes.unchanged)} unchanged")
    if changes.left_over:
        out.print(f"of earlier fleets, delete them: {', '.join(changes.left_over)}", markup=False)
    out.print("next, in this order; each folder's README.txt has the commands:")
    for step in _next_steps(outcome):
        out.print(f"  {step}", markup=False, soft_wrap=True)


def _folders_table(outcome: "Outcome") -> "Table":
    """One row a folder: where it belongs and what it runs."""
    from shardline.plan_table import new_table

    table = new_table(f"cluster {outcome.fleet.cluster}  ·  {outcome.folder}")
    for column in ("folder", "for", "runs", "user"):
        table.add_column(column)
    for row in _summary(outcome)["folders"]:
        table.add_row(row["folder"], row["for"], ", ".join(row["runs"]), row["user"] or "—")
    return table


def _next_steps(outcome: "Outcome") -> list[str]:
    from contract.topics import metrics_filter

    fleet, folder = outcome.fleet, outcome.folder
    others = [machine.name for machine in fleet.machines if not machine.runs_broker]
    steps = [
        f"ansible-playbook -i {folder}/ansible/inventory.ini {folder}/ansible/playbook.yml",
        f"or by hand: copy and start {fleet.broker.host}"
        + (f", then {', '.join(others)}" if others else ""),
        f"cd {folder}/planner, then plan and publish",
    ]
    if fleet.clients:
        steps.append(f"cd {folder}/clients/{fleet.clients[0]}, then infer")
    if fleet.observers:
        steps.append(
            f"cd {folder}/observers/{fleet.observers[0]}, then "
            f"XDG_CONFIG_HOME=\"$PWD\" mosquitto_sub -v -t '{metrics_filter(fleet.cluster)}'"
        )
    return steps


def _summary(outcome: "Outcome") -> dict[str, Any]:
    """For scripts: the folders and what became of their files. No secret is in it."""
    fleet = outcome.fleet
    rows: list[dict[str, Any]] = [
        {
            "folder": machine.name,
            "for": f"{machine.user}@{machine.address}",
            "runs": ["stage"] * (machine.device is not None) + ["broker"] * machine.runs_broker,
            "user": machine.name if machine.device is not None else None,
        }
        for machine in fleet.machines
    ]
    here = [("planner", "planner", fleet.planner)]
    here += [(f"clients/{name}", "client", name) for name in fleet.clients]
    here += [(f"observers/{name}", "mosquitto_sub", name) for name in fleet.observers]
    here += [(f"observers/{name}", "shardline metrics", name) for name in fleet.announcers]
    rows += [
        {"folder": folder, "for": "this machine", "runs": [runs], "user": user}
        for folder, runs, user in here
    ]
    return {
        "cluster": fleet.cluster,
        "folder": str(outcome.folder),
        "folders": rows,
        "written": list(outcome.written.written),
        "unchanged": list(outcome.written.unchanged),
        "left_over": list(outcome.written.left_over),
    }


def _fleet_flag(fleet: Path) -> str:
    return "" if fleet == options.FLEET_FILE else f" --fleet {fleet}"


app.command(name="check")(deploy_check.run)
app.command()(deploy_certificates.renew)
app.command()(deploy_certificates.revoke)
