"""Other processes: what the kernel says of them, where they run, and when they must hold still."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil


def resident(pid: int) -> tuple[float, float]:
    """Steady and peak resident memory in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return float(psutil.Process(pid).memory_info().rss), float(peak.split()[1]) * 1024


def confine_to_two_cpus() -> tuple[int, int]:
    """Keep this process, and all that it starts, to two processors; which ones.

    Broker and client then share what the stages have, on a machine of many processors as on one of
    two, and every side of a comparison has the same.

    Raises:
        RuntimeError: there is only one.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise RuntimeError("two stages need two processors, and this process may use one only")
    os.sched_setaffinity(0, usable[:2])
    return usable[0], usable[1]


def on_cpu(cpu: int | None, command: Sequence[str]) -> list[str]:
    """The command, held to one processor; as it is where ``cpu`` is None."""
    return [*command] if cpu is None else ["taskset", "-c", str(cpu), *command]


def cpu_seconds(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Processor time so far by name, user and system."""
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


def spent_since(before: Mapping[str, float], processes: Mapping[str, psutil.Process]) -> float:
    """Processor seconds of all together since ``before``."""
    return sum(cpu_seconds(processes).values()) - sum(before.values())


def hold_still(pids: Sequence[int]) -> None:
    """Stop them until they are woken: what waits its turn must take nothing from the others.

    Some spin while they wait (TensorPipe's shared memory does).
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def wake(pids: Sequence[int]) -> None:
    """Let them go on."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def awake(pids: Sequence[int]) -> Iterator[None]:
    """Only for so long."""
    wake(pids)
    try:
        yield
    finally:
        hold_still(pids)


class ErrorLog:
    """Where a child process writes what went wrong, shown only if something did."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile("w+b")  # noqa: SIM115  as long as the process

    def tail(self, lines: int = 12) -> str:
        """The last lines."""
        self.file.flush()
        self.file.seek(0)
        text = self.file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:]) or "it said nothing"

    def close(self) -> None:
        """Forget it."""
        self.file.close()
