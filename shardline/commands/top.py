"""`shardline top`: the live view of a cluster."""

from typing import Annotated

from shardline import options
from shardline.options import option


def run(
    once: Annotated[
        bool, option("--once", "Print one snapshot as plain text, after a second, and end.")
    ] = False,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """Watch a cluster: pipeline, devices, links, ledger, events, and what bounds throughput.

    Reads and writes nothing: the credentials of an observer suffice. Keys: q quits, b explains what
    bounds throughput and what would help, d pages and s sorts the devices, ? helps. --json prints
    one snapshot, too. Where there is no terminal to draw on, a snapshot is printed.
    """
    import os
    import secrets
    import sys

    from client.watch.observer import Observer
    from contract.topics import check_name
    from shardline.connecting import connect_to
    from shardline.console import set_up_logging
    from shardline.top.run import require_textual, show_live, show_once, why_not_live

    check_name("cluster", cluster)
    why = None if once or as_json else why_not_live(sys.stdout, os.environ)
    is_live = not (once or as_json) and why is None
    if is_live:
        require_textual()
    else:
        set_up_logging(verbose=False)
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    name = connect.address.username or f"top-{secrets.token_hex(4)}"
    with Observer(connect, cluster, name) as observer:
        if is_live:
            show_live(observer, str(connect.address))
        else:
            show_once(observer, str(connect.address), as_json=as_json, why=why)
