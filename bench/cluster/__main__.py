"""The emulated cluster's command; see README.md beside this file.

sudo .venv/bin/python -m bench.cluster calibrate [--devices 0.4,0.2,0.1]
sudo .venv/bin/python -m bench.cluster compare --devices 0.4,0.2 --plans DIR DIR…
sudo .venv/bin/python -m bench.cluster scale [--models mobilenet_v2] [--counts 1,2,4,8]
sudo .venv/bin/python -m bench.cluster replicas [--devices 0.4,0.2]
sudo .venv/bin/python -m bench.cluster verdict [--models …] [--devices 0.3,0.3,0.3]
sudo .venv/bin/python -m bench.cluster scaling [--models …] [--counts 1,2,4,8]
sudo .venv/bin/python -m bench.cluster clean
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cluster import cgroups, network
from bench.cluster.calibrate import calibrate
from bench.cluster.compare import compare, document, show
from bench.cluster.devices import EmulatedDevice
from bench.cluster.rig import Cluster
from bench.cluster.scale import build, replicas_of
from bench.cluster.study import ALTERNATIVES, SCALING, Wanted, load, study
from contract.plan import Replica

PLANS = Path("shards/built/cluster")


def devices_of(quotas: Sequence[float], rate_mbit: float) -> list[EmulatedDevice]:
    """d0, d1, … with these quotas."""
    return [EmulatedDevice(f"d{i}", quota, rate_mbit) for i, quota in enumerate(quotas)]


def _calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    devices = devices_of(arguments.devices, arguments.device_mbit)
    (whole,) = build(arguments.folder, arguments.models[0], [1], 1)
    return calibrate(
        devices,
        arguments.broker_mbit,
        arguments.client_mbit,
        whole,
        arguments.rounds,
        arguments.seconds,
    )


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    devices = devices_of(arguments.devices, arguments.device_mbit)
    whole = arguments.whole
    if whole is None:
        (whole,) = build(arguments.folder, arguments.models[0], [1], arguments.batch)
    return _run(arguments, devices, arguments.plans, whole)


def _scale(arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for model in arguments.models:
        whole, *_ = build(arguments.folder, model, [1], arguments.batch)
        for count in arguments.counts:
            devices = devices_of([arguments.quota] * count, arguments.device_mbit)
            folders = build(arguments.folder, model, [count], arguments.batch)
            print(f"\n{model}, {count} devices of {arguments.quota:g}")
            found[f"{model}-{count}"] = _run(arguments, devices, folders, whole)
    return found


def _replicas(arguments: argparse.Namespace) -> dict[str, Any]:
    devices = devices_of(arguments.devices, arguments.device_mbit)
    whole, *_ = build(arguments.folder, arguments.models[0], [1], arguments.batch)
    both = [Replica(device=device.name, speed=device.quota) for device in devices]
    folders = []
    for name, replicas in (("fastest", [max(both, key=lambda r: r.speed)]), ("replicas", both)):
        folders.append(arguments.folder / f"{whole.name}-{name}")
        replicas_of(whole, folders[-1], replicas, "default")
    return _run(arguments, devices, folders, whole)


def _verdict(arguments: argparse.Namespace) -> dict[str, Any]:
    """Profile, plan every way, run all of it: predicted beside measured."""
    devices = devices_of(arguments.devices, arguments.device_mbit)
    return _study(arguments, [devices], ALTERNATIVES)


def _scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Profile, plan and run 1, 2, 4, 8 equal devices."""
    sets = [devices_of([arguments.quota] * n, arguments.device_mbit) for n in arguments.counts]
    return _study(arguments, sets, SCALING)


def _study(
    arguments: argparse.Namespace,
    sets: Sequence[Sequence[EmulatedDevice]],
    wanted: Sequence[Wanted],
) -> dict[str, Any]:
    found = []
    for name in arguments.models:
        model = load(name, arguments.batch)
        for devices in sets:
            quotas = ", ".join(f"{device.quota:g}" for device in devices)
            print(f"\n{name}, devices of {quotas}, broker {arguments.broker_mbit:g} Mbit/s")
            setting = study(
                model,
                devices,
                arguments.broker_mbit,
                wanted,
                arguments.rounds,
                arguments.seconds,
                arguments.batch,
                _kept(arguments.profiles, name, devices),
            )
            show(setting.rows)
            speeds = " and ".join(f"{rate:.2f}" for rate in setting.control_when_profiled)
            print(f"the control before and after profiling: {speeds} images/s")
            print(f"recommended: {setting.recommended}; the same: {setting.same}", flush=True)
            found.append(asdict(setting))
    return {"settings": found}


def _kept(profiles: Path | None, model: str, devices: Sequence[EmulatedDevice]) -> Path | None:
    """The folder for the timings of these devices and this model, made if need be."""
    if profiles is None:
        return None
    quotas = "-".join(f"{device.quota:g}" for device in devices)
    folder = profiles / f"{model}-{quotas}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(
    arguments: argparse.Namespace,
    devices: Sequence[EmulatedDevice],
    folders: Sequence[Path],
    whole: Path,
) -> dict[str, Any]:
    with Cluster(devices, arguments.broker_mbit, arguments.client_mbit) as cluster:
        rows = compare(
            cluster, folders, whole, arguments.rounds, arguments.seconds, arguments.window
        )
    show(rows)
    return document(rows, devices)


def _clean(_arguments: argparse.Namespace) -> dict[str, Any]:
    removed = [*network.remove_left_behind(), *cgroups.remove_left_behind()]
    print("\n".join(removed) or "nothing was left behind")
    return {"removed": removed}


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.cluster")
    commands = parser.add_subparsers(required=True)
    for name, function in (
        ("calibrate", _calibrate),
        ("compare", _compare),
        ("scale", _scale),
        ("replicas", _replicas),
        ("verdict", _verdict),
        ("scaling", _scaling),
        ("clean", _clean),
    ):
        command = commands.add_parser(name)
        command.set_defaults(run=function)
        if name == "clean":
            continue
        command.add_argument("--broker-mbit", type=float, default=1000.0)
        command.add_argument("--client-mbit", type=float, default=1000.0)
        command.add_argument("--device-mbit", type=float, default=1000.0)
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--seconds", type=float, default=8.0)
        command.add_argument("--models", type=lambda text: text.split(","), default="mobilenet_v2")
        command.add_argument("--folder", type=Path, default=PLANS, help="plans built here")
        command.add_argument("--json", type=Path, help="write the figures here too")
        if name in ("scale", "scaling"):
            command.add_argument("--quota", type=float, default=0.1)
            command.add_argument(
                "--counts", type=lambda text: list(map(int, text.split(","))), default="1,2,4,8"
            )
        else:
            quotas = {"replicas": "0.4,0.2", "verdict": "0.3,0.3,0.3"}.get(name, "0.4,0.2,0.1")
            command.add_argument(
                "--devices", type=_numbers, default=quotas, help="quotas of d0, d1, …"
            )
        if name != "calibrate":
            command.add_argument("--window", type=int, help="batches in flight")
            command.add_argument("--batch", type=int, default=1)
        if name in ("verdict", "scaling"):
            command.add_argument(
                "--profiles", type=Path, help="keep the devices' timings here, for other links"
            )
        if name == "compare":
            command.add_argument("--plans", type=Path, nargs="+", required=True)
            command.add_argument(
                "--whole", type=Path, help="one-stage plan of the same model, for the control"
            )
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("namespaces and quotas need root: sudo .venv/bin/python -m bench.cluster …")
    found = arguments.run(arguments)
    if getattr(arguments, "json", None):
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
