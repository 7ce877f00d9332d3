"""`shardline dashboard`: the cluster in a browser."""

import secrets
import signal
from pathlib import Path
from typing import Annotated

from shardline import options
from shardline.options import option


def run(
    bind: Annotated[
        str, option("--bind", "Address to serve the page at: host:port; port 0: any free one.")
    ] = "127.0.0.1:8080",
    token_file: Annotated[
        Path | None,
        option(
            "--token-file", "Let in only who knows the token in this file; made if it is not there."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        option(
            "--allow-host",
            "Name of this machine by which browsers call it; repeatable. Addresses and localhost "
            "need none.",
        ),
    ] = None,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Show the cluster in a browser, live, until SIGTERM or Ctrl-C; changes nothing."""
    from contract.errors import EnvironmentMissingError, SettingsError

    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissingError(
            f"{error.name} is not installed: the dashboard needs it, a stage does not; "
            "run `make setup`, or pip install 'shardline[watch]'"
        ) from error
    from client.dashboard.app import make_app
    from client.dashboard.guard import read_or_make_token
    from client.dashboard.hub import Hub
    from client.dashboard.serve import DashboardServer, listen, parse_bind
    from client.watch.bound import explain
    from client.watch.observer import Observer
    from shardline.connecting import connect_to
    from shardline.console import err, set_up_logging

    set_up_logging(verbose)
    where = parse_bind(bind)
    for name in allow_host or ():
        if not name or set(name) & set(":/ "):
            raise SettingsError(
                f"--allow-host {name!r}: expected a name alone, for example pi.local, without "
                "https:// and without a port"
            )
    token, is_new = (None, False) if token_file is None else read_or_make_token(token_file)
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    name = connect.address.username or f"dashboard-{secrets.token_hex(4)}"
    names = frozenset(name.lower() for name in allow_host or ())
    with listen(where) as listener, Observer(connect, cluster, name) as observer:
        hub = Hub(observer.view, explain=explain)
        app = make_app(hub, token=token, allowed_hosts=names)
        server = DashboardServer(hub, app, listener)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        page = f"http://{_shown(where.host)}:{listener.getsockname()[1]}/"
        err.print(f"dashboard of cluster {cluster}: {page}", markup=False, soft_wrap=True)
        if token_file is not None:
            what = "a token was made in" if is_new else "asks for the token in"
            err.print(f"{what} {token_file}", markup=False, soft_wrap=True)
        elif not where.is_loopback:
            err.print(
                f"warning: whoever reaches {where.host} sees the names, models and figures of this "
                "cluster; --token-file FILE asks them for a token",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        server.run()


def _shown(host: str) -> str:
    """The host as a person may type it into a browser."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 it is compared, not bound
        return "ADDRESS-OF-THIS-MACHINE"
    return f"[{host}]" if ":" in host else host
