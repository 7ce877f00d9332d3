"""`shardline deploy check`: the devices asked what is wrong with them, and what to do about it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from shardline import options
from shardline.commands import deploy_certificates
from shardline.options import option

if TYPE_CHECKING:
    from deploy.check import Finding


def run(
    fleet: options.FleetFile = options.FLEET_FILE,
    # Variables of their own: fleet.yaml and what lies beside it know them, and a container's
    # SHARDLINE_BROKER is of the folder which it was started in, not of the fleet that is asked.
    broker: Annotated[
        str | None,
        option(
            "--broker", "Address of the broker; default: fleet.yaml's.", variable="FLEET_BROKER"
        ),
    ] = None,
    username: Annotated[
        str | None,
        option(
            "--username",
            "User name at the broker; default: fleet.yaml's planner.",
            variable="FLEET_USERNAME",
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        option(
            "--password-file",
            "File that holds its password; default: credentials/USER beside fleet.yaml.",
            variable="FLEET_PASSWORD_FILE",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        option(
            "--ca-file",
            "Certificate of the fleet's CA; default: authority/ca.crt beside fleet.yaml.",
            variable="FLEET_CA_FILE",
        ),
    ] = None,
    cert_file: Annotated[
        Path | None,
        option(
            "--cert-file",
            "The user's certificate; default: credentials/USER.crt beside fleet.yaml.",
            variable="FLEET_CERT_FILE",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        option(
            "--key-file",
            "Its private key; default: credentials/USER.key beside fleet.yaml.",
            variable="FLEET_KEY_FILE",
        ),
    ] = None,
    timeout: Annotated[
        float, option("--timeout", "Seconds to wait for the devices' answers.", min=0.1)
    ] = 15.0,
    as_json: options.Json = False,
) -> None:
    """Ask every device what is wrong with it (clock, memory, disk, power); look at certificates."""
    deploy_certificates.need_cryptography()
    from datetime import UTC, datetime

    from contract.errors import BrokerError, DeviceUnfitError, SettingsError
    from contract.version import SHARDLINE_VERSION
    from deploy.authority import AUTHORITY, CA_CERT, CREDENTIALS
    from deploy.certificate_check import check_certificates
    from deploy.check import Verdict, judge
    from deploy.examine import examine_fleet
    from deploy.fleet_file import load_fleet
    from deploy.inventory import Security, host_and_port
    from shardline.connecting import connect_to
    from shardline.console import print_json, steps

    known = load_fleet(fleet)
    user = username or known.planner
    where = broker or host_and_port(known.broker_address, known.broker.port)
    ours = fleet.parent / CREDENTIALS
    ca_file = ca_file or fleet.parent / AUTHORITY / CA_CERT
    if known.security is Security.CERTIFICATES:
        cert_file, key_file = cert_file or ours / f"{user}.crt", key_file or ours / f"{user}.key"
    else:
        password_file = password_file or ours / user
    certificates = check_certificates(known, fleet.parent, datetime.now(UTC))
    try:
        connect = connect_to(where, user, password_file, ca_file, cert_file, key_file)
        with steps("checking") as step:
            heard = examine_fleet(
                connect,
                known.cluster,
                user,
                [device.name for device in known.devices],
                timeout,
                step,
            )
    except (BrokerError, SettingsError):
        bad = [finding for finding in certificates if finding.remedy]
        if bad and not as_json:  # it may be why
            _print_findings(bad)
        raise
    findings = [
        *certificates,
        *(
            finding
            for device in known.devices
            for finding in judge(device, *heard[device.name], SHARDLINE_VERSION)
        ),
    ]
    if as_json:
        print_json([finding.model_dump(mode="json") for finding in findings])
    else:
        _print_findings(findings)
    unfit = sorted({finding.device for finding in findings if finding.verdict is Verdict.PROBLEM})
    if unfit:
        raise DeviceUnfitError(f"problems with {', '.join(unfit)}; the table says what to do")


def _print_findings(findings: "list[Finding]") -> None:
    """The table, and below it what to do about each thing that is not well."""
    from rich.markup import escape

    from deploy.check import Verdict
    from shardline.console import out
    from shardline.plan_table import new_table

    colours = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}
    table = new_table("what the devices say")
    for column in ("device", "what", "", "detail"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(escape(finding.device), finding.what, mark, escape(finding.detail))
    out.print(table)
    for finding in findings:
        if finding.remedy:
            out.print(f"{finding.device}, {finding.what}: {finding.remedy}", markup=False)
