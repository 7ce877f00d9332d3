"""The processes of a pipeline under test: a Mosquitto, stages, and who starts them again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from broker.embedded import find_mosquitto

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 60.0
POLL_S = 0.02
_SETPRIV = shutil.which("setpriv")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STARTER = ThreadPoolExecutor(1, "starter")
"""Starts all children: the kernel ends them with the thread that started them, not the process."""
_STARTER.submit(threading.get_ident).result()
"""Its thread begins here: one that the first child began would keep that row's network namespace,
and what it starts for later rows would be out of their reach."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """A process that can be killed, stopped and started again, and dies with the harness."""

    def __init__(
        self, command: Sequence[str], log: Path, before: Sequence[str] = (), **environment: str
    ) -> None:
        """``before``: a command that runs this one, such as `ip netns exec NAME`."""
        self.command, self.log = [*before, *command], log
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SHARDLINE_")
        } | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self.process: subprocess.Popen[bytes] | None = None
        self.peak_bytes = 0

    def start(self) -> None:
        _STARTER.submit(self._start).result(timeout=START_LIMIT_S)

    def _start(self) -> None:
        leash = [_SETPRIV, "--pdeathsig", "KILL", "--"] if _SETPRIV else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*leash, *self.command],
                cwd=self.log.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        """Send a signal; harmless when the process has ended."""
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def end(self, timeout_s: float = 5.0) -> int:
        """SIGTERM, and SIGKILL where that does not help; the exit status."""
        assert self.process is not None
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def words(self) -> str:
        """All that it has said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def high_water_bytes(self) -> int:
        """The most resident memory that this process ever had (VmHWM)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def look_at_memory(self) -> None:
        """Take its resident memory into the peak."""
        if self.is_running:
            try:
                pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                return
            self.peak_bytes = max(self.peak_bytes, pages * _PAGE_BYTES)


class Broker(Child):
    """Mosquitto with a configuration of the product's, on a port that it keeps."""

    def __init__(
        self,
        folder: Path,
        conf: str,
        host: str,
        port: int,
        before: Sequence[str] = (),
        entry_point: Path | None = None,
    ) -> None:
        self.host, self.port = host, port
        file = folder / "mosquitto.conf"
        file.write_text(conf)
        command = [str(entry_point)] if entry_point else [find_mosquitto(), "-c", str(file)]
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
        super().__init__(command, folder / "mosquitto.log", before, PATH=path)

    def wait_until_it_accepts(self, connect: Callable[[tuple[str, int]], socket.socket]) -> None:
        """Until its port is open.

        Raises:
            RuntimeError: it has ended, or does not listen in time.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if not self.is_running:
                break
            try:
                connect((self.host, self.port)).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        raise RuntimeError(f"the broker did not come up: {self.words()[-500:]}")


def stage_command(told: str, device: str, options: Sequence[str]) -> list[str]:
    """`shardline stage` by way of the launcher."""
    return [
        *(sys.executable, "-m", "tests.faults.launcher", told),
        *("stage", "--device", device, "--threads", "1", *options),
    ]


class Supervisor:
    """Starts stages again that have ended, as `restart: always` does; watches everyone's memory."""

    def __init__(self, stages: dict[str, Child], others: Sequence[Child]) -> None:
        self._stages, self._others = stages, others
        self.restarts = 0
        self.left_dead: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        turn = 0
        while not self._stopping.wait(POLL_S):
            for name, child in list(self._stages.items()):
                if not child.is_running and name not in self.left_dead:
                    child.start()
                    self.restarts += 1
            turn += 1
            if turn % 5 == 0:
                for child in (*self._stages.values(), *self._others):
                    child.look_at_memory()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)
