"""Which machine, which versions, and how quiet it was: without these a figure says nothing.

No names of hosts or people: results are published.
"""

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from broker.embedded import find_mosquitto
from contract.errors import EnvironmentMissingError
from contract.version import SHARDLINE_VERSION

PACKAGES = ("numpy", "onnxruntime", "paho-mqtt", "torch", "torchvision")
MOST_OF_OTHERS, MOST_STOLEN = 0.04, 0.01
"""Shares of all processors: beyond them, other work has disturbed the measurement."""


@cache
def machine() -> dict[str, str | int | float]:
    """Processor, processors that may be used, memory, system."""
    return {
        "processor": processor(
            _read("/proc/device-tree/model").strip("\0"), _read("/proc/cpuinfo")
        ),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def processor(board: str, cpuinfo: str) -> str:
    """The board's own name where it has one (a Raspberry Pi), else the processor's. Pure.

    A processor that says so is marked as a virtual machine's.
    """
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    name = board.strip() or (found[1].strip() if found else platform.machine())
    virtual = re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.M)
    return f"{name}, virtual machine" if virtual else name


@cache
def versions() -> dict[str, str]:
    """Of Shardline, Python, the packages that are installed, and Mosquitto."""
    found = {"shardline": SHARDLINE_VERSION, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    mosquitto = mosquitto_version()
    return found if mosquitto is None else found | {"mosquitto": mosquitto}


def mosquitto_version() -> str | None:
    """As its help says it; None where it is not installed."""
    try:
        said = subprocess.run([find_mosquitto(), "-h"], capture_output=True, text=True, timeout=10)
    except (EnvironmentMissingError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"mosquitto version (\S+)", said.stdout + said.stderr)
    return None if found is None else found[1]


@dataclass(frozen=True, slots=True)
class Stillness:
    """Processor seconds of this machine so far: all, busy, our own, and stolen by its host."""

    total_s: float
    busy_s: float
    own_s: float
    stolen_s: float

    @classmethod
    def now(cls) -> "Stillness":
        """Take it at the start. Our own are those of children, too, once they have ended."""
        times = psutil.cpu_times()
        ours = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return cls(
            total_s=times.user + times.nice + times.system + times.idle + times.iowait,
            busy_s=times.user + times.nice + times.system,
            own_s=sum(usage.ru_utime + usage.ru_stime for usage in ours),
            stolen_s=times.steal,
        )

    def since(self, before: "Stillness") -> dict[str, float | bool]:
        """Shares of the processors that others used and the host took, and if that is quiet."""
        total_s = max(self.total_s - before.total_s + self.stolen_s - before.stolen_s, 1e-9)
        others_s = self.busy_s - before.busy_s - (self.own_s - before.own_s)
        others, stolen = max(others_s, 0.0) / total_s, (self.stolen_s - before.stolen_s) / total_s
        return {
            "others": round(others, 4),
            "stolen": round(stolen, 4),
            "quiet": others <= MOST_OF_OTHERS and stolen <= MOST_STOLEN,
        }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
