"""The emulated devices: one stage process each, on its own host, with its share of CPU 0."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.cluster.cgroups import ProcessorShare, Throttling
from bench.cluster.network import Host

DEVICES_CPU, HUB_CPU = 0, 1
"""The devices share the one; broker and client have the other, so that they take nothing away."""
MAX_SHARES = 0.95
"""What is left keeps the kernel's own work from counting against a device."""


@dataclass(frozen=True, slots=True)
class EmulatedDevice:
    """A device: its share of one processor, the rate of its cable in Mbit/s, and its engine."""

    name: str
    quota: float
    rate_mbit: float = 1000.0
    engine: str = "onnxruntime"


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals of a process since it started: processor seconds of its main and its other threads,
    switches between threads, and how its share was withheld."""

    main_s: float
    others_s: float
    switches: int
    throttling: Throttling

    @property
    def cpu_s(self) -> float:
        """Of all threads."""
        return self.main_s + self.others_s


class RunningDevice:
    """The stage process of one device."""

    def __init__(
        self,
        device: EmulatedDevice,
        host: Host,
        broker: str,
        shards: Path,
        cache: Path,
        stack: ExitStack,
    ) -> None:
        """Start it, unlimited; ``stack`` ends it."""
        self.device = device
        self.share = stack.enter_context(ProcessorShare(device.name, device.quota))
        stage = [sys.executable, "-m", "shardline", "stage", "--device", device.name]
        stage += ["--broker", broker, "--threads", "1", "--engine", device.engine]
        stage += ["--shards", str(shards), "--cache", str(cache)]
        self._process = start(host, DEVICES_CPU, stage, stack)
        self.share.add(self._process.pid)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def usage(self) -> Usage:
        """What it has used so far."""
        main_s, others_s, switches = thread_times(self.pid)
        return Usage(main_s, others_s, switches, self.share.throttling())

    def resident(self) -> tuple[int, int]:
        """Resident memory and its peak, in bytes; the peak is since the last :meth:`forget_peak`.

        Pages of the weights file count in every process that maps it.
        """
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", text, re.MULTILINE))
        return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024

    def forget_peak(self) -> None:
        """Let the peak begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


def check_shares(devices: Sequence[EmulatedDevice]) -> None:
    """Refuse devices that cannot all run on one processor.

    Raises:
        ValueError: their shares add up to more than there is, or there are none.
    """
    total = sum(device.quota for device in devices)
    if not devices or total > MAX_SHARES + 1e-9:
        raise ValueError(
            f"{len(devices)} devices with quotas of {total:g} together: expected at least one "
            f"device and at most {MAX_SHARES:g}, since they share one processor"
        )


def start(
    host: Host, cpu: int, command: Sequence[str], stack: ExitStack
) -> subprocess.Popen[bytes]:
    """Start a process on a host, pinned to a processor; it ends with ``stack``, or with us."""
    whole = ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", str(cpu), *command]
    process = subprocess.Popen(
        host.command(whole),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=plain_environment(),
    )
    stack.callback(end, process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """In order if it will, within 5 s."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def plain_environment() -> dict[str, str]:
    """This process's environment without settings of ours, which would reach every device."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SHARDLINE_")}


def thread_times(pid: int) -> tuple[float, float, int]:
    """Processor seconds of the main thread and of all others, and their switches.

    From the scheduler's own counts, in nanoseconds. In a stage process the main thread computes;
    the others carry messages and metrics.
    """
    main_s, others_s, switches = 0.0, 0.0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            ran_ns, _, slices = (task / "schedstat").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
        switches += int(slices)
        if task.name == str(pid):
            main_s = int(ran_ns) / 1e9
        else:
            others_s += int(ran_ns) / 1e9
    return main_s, others_s, switches


def wait_until_it_listens(host: Host, port: int, timeout_s: float = 10.0) -> None:
    """Wait for a server on a host; call it on a thread that is on the network.

    Raises:
        TimeoutError: it does not accept connections.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.address, port), timeout=0.2):
                return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"{host.address}:{port} accepts no connection after {timeout_s:g} s")
