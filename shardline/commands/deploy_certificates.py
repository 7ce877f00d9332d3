"""`shardline deploy renew` and `revoke`: certificates that end, and users that are to stay out."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from contract.errors import EnvironmentMissingError
from shardline import options
from shardline.options import option

DEFAULT_WITHIN_DAYS = 60
Folder = Annotated[
    Path | None,
    option("--out", "Folder of the folders; default: that of fleet.yaml.", variable="FLEET_OUT"),
]


def need_cryptography() -> None:
    """Say in one sentence what certificates need.

    Raises:
        EnvironmentMissingError: it is not installed.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise EnvironmentMissingError(
            "cryptography is not installed: certificates need it, a stage does not; "
            "run `make setup`, or pip install 'shardline[planner]'"
        )


def renew(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Users, or broker. Default: whoever's certificate ends soon."),
    ] = None,
    within: Annotated[
        int, option("--within", "Renew what ends within so many days.", min=0)
    ] = DEFAULT_WITHIN_DAYS,
    fleet: options.FleetFile = options.FLEET_FILE,
    folder: Folder = None,
    as_json: options.Json = False,
) -> None:
    """Make new certificates in place of those that end soon. The old ones stay good until then."""
    need_cryptography()
    from datetime import timedelta

    from deploy.rendering import renew_certificates
    from shardline.console import out, print_json

    ends = renew_certificates(fleet, folder, tuple(names or ()), timedelta(days=within))
    if as_json:
        print_json({"renewed": {name: end.isoformat() for name, end in ends.items()}})
        return
    if not ends:
        out.print(f"no certificate ends within {within} days")
        return
    for name, end in ends.items():
        out.print(f"{name}: a new certificate, until {end:%Y-%m-%d}", markup=False)
    out.print("next: shardline deploy render, then copy their folders and start them anew")


def revoke(
    name: Annotated[str, typer.Argument(help="The user that is to stay out.")],
    fleet: options.FleetFile = options.FLEET_FILE,
    folder: Folder = None,
    as_json: options.Json = False,
) -> None:
    """Make every certificate of a user worthless: a device was lost, or a key was seen."""
    need_cryptography()
    from deploy.rendering import revoke_certificates
    from shardline.console import out, print_json

    known, count = revoke_certificates(fleet, folder, name)
    if as_json:
        print_json({"user": name, "revoked": count})
        return
    what = "1 certificate is" if count == 1 else f"{count} certificates are"
    out.print(f"{name}: {what} revoked; the broker does not know it yet", markup=False)
    if name in known.users:
        out.print(
            f"to keep {name} out, remove it from {fleet}: it then has no rights either. If it "
            "stays, rendering makes a new certificate for it",
            markup=False,
            soft_wrap=True,
        )
    host = known.broker.host
    out.print(
        f"next: shardline deploy render, then copy {host}'s folder and there `docker compose up -d "
        "--force-recreate broker`: only a restart ends a connection that stands",
        markup=False,
        soft_wrap=True,
    )
