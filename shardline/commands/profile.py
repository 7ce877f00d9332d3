"""`shardline profile`: let the devices measure a model, and keep the answers."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardline import options
from shardline.options import option

if TYPE_CHECKING:
    from contract.profile import FleetProfile


def run(
    model: Annotated[
        str, typer.Argument(help="torchvision:NAME, a .onnx file, or module:callable.")
    ],
    device: Annotated[
        list[str] | None,
        option(
            "--device",
            "Device to measure; repeatable. Default: those online.",
            variable="DEVICES",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        option(
            "--batch",
            "Images in a batch; repeatable. Default: 1.",
            variable="PROFILE_BATCHES",
            min=1,
            max=4096,
        ),
    ] = None,
    refresh: Annotated[
        bool, option("--refresh", "Measure again what was measured before on devices of a kind.")
    ] = False,
    sustained: Annotated[
        float,
        option(
            "--sustained",
            "Seconds to run without a pause, to see whether a device slows down (0: leave it out).",
            min=0,
            max=3600,
        ),
    ] = 10.0,
    out: Annotated[
        Path | None,
        option(
            "--out",
            "File of the profile; default: shards/built/profiles/NAME.json.",
            variable="PROFILE",
        ),
    ] = None,
    weights: options.Weights = "DEFAULT",
    seed: options.Seed = 0,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    model_arg: options.ModelArg = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preprocess: options.Preprocess = "auto",
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
    """Ask every device how fast it runs a model, what memory it has, how good its link is."""
    from contract.topics import check_name
    from shardline.commands.plan import plan_name
    from shardline.connecting import connect_to
    from shardline.console import out as stdout
    from shardline.console import print_json, set_up_logging, steps
    from shardline.importing import import_options
    from shardline.profile_table import broker_line, profile_table

    set_up_logging(verbose)
    chosen = import_options(
        weights, seed, num_classes, input_size, model_arg, mean, std, preprocess
    )
    from planner.canonical import canonicalise
    from planner.devices.measure_device import ProfileRequest
    from planner.devices.profile_fleet import FleetProfiler
    from planner.graph import segment_graph
    from planner.importers import import_model

    devices = None if not device else tuple(check_name("device", name) for name in device)
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    name = connect.address.username or f"planner-{secrets.token_hex(4)}"
    with FleetProfiler(connect, cluster, name) as profiler, steps("profiling") as step:
        graph = segment_graph(canonicalise(import_model(model, chosen, step), step))
        request = ProfileRequest(
            batch_sizes=tuple(batch or (1,)),
            devices=devices,
            refresh=refresh,
            sustained_s=sustained,
        )
        profile = profiler.profile(graph, request, ready_timeout, step)
    file = out or options.SHARDS_DIR / "profiles" / f"{plan_name(model)}.json"
    _write(file, profile)
    if as_json:
        print_json(profile.model_dump(mode="json"))
    else:
        stdout.print(profile_table(profile))
        stdout.print(broker_line(profile), markup=False, soft_wrap=True)
        stdout.print(f"written to {file}", markup=False, soft_wrap=True)


def _write(file: Path, profile: "FleetProfile") -> None:
    from contract.errors import SettingsError

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(profile.to_json() + "\n")
    except OSError as error:
        raise SettingsError(
            f"--out {file}: cannot write it ({error.strerror}); name a file in a folder that you "
            "may write"
        ) from error
