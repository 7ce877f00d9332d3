"""`shardline publish`: hand a plan to the devices, and with `--watch` keep it fitting them."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from shardline import options
from shardline.options import option


def run(
    plan: Annotated[Path, typer.Argument(help="Folder that `shardline plan` wrote.")],
    device: Annotated[
        list[str] | None,
        option(
            "--device",
            "Device of the next stage, in order; repeatable. Default: those online.",
            variable="DEVICES",
        ),
    ] = None,
    edge_broker: Annotated[
        list[str] | None,
        option(
            "--edge-broker",
            "EDGE=HOST:PORT, a broker of its own for an edge, as 1=pi-8:1883; repeatable. Edge k "
            "carries the inputs of stage k, the one after the last stage the results.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        option("--watch", "Stay, and plan anew when a device is lost or comes back."),
    ] = False,
    grace: Annotated[
        float,
        option("--grace", "With --watch: seconds that a device may be away.", min=0.5),
    ] = 20.0,
    devices: Annotated[
        Path | None,
        option(
            "--devices",
            "With --watch: the devices to plan anew for, as for `plan`; default: what the plan "
            "says of them, or profiles that were measured before.",
            variable="DEVICE_FILE",
        ),
    ] = None,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    ready_timeout: options.ReadyTimeout = 60.0,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Place a plan on devices, hand out the shards, publish it, wait until every stage is ready."""
    from contract.plan import load_plan, place
    from planner.publish import Publisher, place_on
    from shardline.connecting import connect_to
    from shardline.console import out, print_json, set_up_logging, steps
    from shardline.edges import parse_edge_brokers, try_edge_brokers, with_ports
    from shardline.plan_table import edge_brokers_line, placement_table

    set_up_logging(verbose)
    built = load_plan(plan)
    folder = plan if plan.is_dir() else plan.parent
    edges = parse_edge_brokers(edge_broker or [], built.num_stages) or built.edge_brokers
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    edges = with_ports(edges, connect.address.tls)
    name = connect.address.username or f"planner-{secrets.token_hex(4)}"
    try_edge_brokers(connect, name, edges, built.num_stages)
    placed = None
    if device:
        placed = place_on(built, device, cluster)
    elif built.placement:
        placed = place(built, [spot.replicas for spot in built.placement], cluster)
    if placed is not None and edges:
        placed = place(placed, [spot.replicas for spot in placed.placement], cluster, edges)
    if watch:
        from planner.watch.service import WatchSettings
        from shardline.watching import watch_plan

        settings = WatchSettings(name, cluster, placed, edges, grace, ready_timeout)
        watch_plan(settings, folder, built, connect, devices, as_json=as_json)
        return
    with Publisher(connect, cluster, name) as publisher, steps("publishing") as step:
        if placed is None:
            placed = publisher.place_on_online(built, ready_timeout, edges)
        publisher.hand_out(placed, folder, ready_timeout, step)
        publisher.publish(placed)
        publisher.wait_until_ready(placed, ready_timeout, step)
    if as_json:
        print_json(placed.model_dump(mode="json"))
    else:
        out.print(placement_table(placed))
        if placed.edge_brokers:
            out.print(edge_brokers_line(placed), markup=False, soft_wrap=True)
        out.print(f"plan {placed.plan_id} is published, all {placed.num_stages} stages are ready")
