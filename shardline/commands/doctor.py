"""`shardline doctor`: what is missing on this machine, and how to get it."""

import importlib.util
import os
import platform
import sys
from typing import Annotated, NamedTuple

from contract.errors import EnvironmentMissingError
from shardline import options
from shardline.options import option

STAGE_PACKAGES = ("numpy", "onnxruntime", "paho", "psutil", "pydantic", "safetensors", "xxhash")
PLANNER_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "cryptography")


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    ok: bool
    detail: str


def run(
    stage_only: Annotated[
        bool, option("--stage-only", "Only what a device needs, not the planner's part.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Say what is missing on this machine and how to get it."""
    from rich.table import Table

    from shardline.console import out, print_json

    findings = examine(stage_only)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        table = Table(show_header=False, box=None)
        for finding in findings:
            mark = "[green]ok[/]" if finding.ok else "[red]missing[/]"
            table.add_row(mark, finding.what, finding.detail)
        out.print(table)
    missing = [finding.what for finding in findings if not finding.ok]
    if missing:
        raise EnvironmentMissingError(f"missing here: {', '.join(missing)}")


def examine(stage_only: bool) -> list[Finding]:
    """Look at Python, the packages, Mosquitto and memory."""
    import psutil

    from broker.embedded import find_mosquitto

    version = platform.python_version()
    memory_mb = psutil.virtual_memory().available // 1_000_000
    findings = [
        Finding("python", sys.version_info >= (3, 11), f"{version}, needs 3.11 or newer"),
        Finding("machine", True, f"{platform.machine()}, {os.cpu_count()} cores"),
        Finding("memory", memory_mb >= 150, f"{memory_mb:,} MB available, a stage needs 150"),
        *(_package(name, "pip install shardline") for name in STAGE_PACKAGES),
    ]
    if not stage_only:
        findings += [_package(name, "make setup") for name in PLANNER_PACKAGES]
        try:
            findings.append(Finding("mosquitto", True, find_mosquitto()))
        except EnvironmentMissingError as error:
            findings.append(Finding("mosquitto", False, str(error)))
    return findings


def _package(name: str, remedy: str) -> Finding:
    found = importlib.util.find_spec(name) is not None
    return Finding(name, found, "installed" if found else f"get it with `{remedy}`")
