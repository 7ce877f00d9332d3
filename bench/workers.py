"""Processes that the benchmarks compare with: pinned, idle until told to run for a while.

A worker says `warm` on its standard output when it is, then answers each line of its input, a
number of seconds, with the images a second that it reached.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from bench.processes import ErrorLog, on_cpu
from shards.session import open_session, run_session

WARM_UP_RUNS = 3
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Every engine gets one thread, by whatever library it multiplies."""


class WorkerError(RuntimeError):
    """A worker ended; the message ends with what it said."""


class LineProcess:
    """A child process that answers lines. Use as a context manager."""

    def __init__(
        self,
        command: Sequence[str],
        cpu: int | None,
        environment: Mapping[str, str] | None = None,
        *,
        module: bool = True,
    ) -> None:
        """Start ``python -m`` with this command, on one processor unless ``cpu`` is None.

        Without ``module``, ``python`` with it.
        """
        self._name = " ".join(command[: 1 if module else 2])
        self._log = ErrorLog()
        self._process = subprocess.Popen(
            on_cpu(cpu, [sys.executable, *(["-m"] if module else []), *command]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.file,
            text=True,
            env={**os.environ, **ONE_THREAD, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """Process id; taskset becomes what it starts."""
        return self._process.pid

    def tell(self, line: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def hear(self) -> str:
        """The next line; waits for it.

        Raises:
            WorkerError: the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return line.strip()

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        return WorkerError(f"{self._name} ended with {code}:\n{self._log.tail()}")

    def close(self) -> None:
        """End it: it sees the end of its input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> "LineProcess":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Worker(LineProcess):
    """One that computes images on command; ready once it is made."""

    def __init__(
        self,
        command: Sequence[str],
        cpu: int | None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(command, cpu, environment)
        try:
            self.hear()  # it says so when it is warm
        except BaseException:
            self.close()
            raise

    def start(self, seconds: float) -> None:
        """Let it run for so long."""
        self.tell(str(seconds))

    def images_per_s(self) -> float:
        """What it reached since :meth:`start`; waits for it."""
        return float(self.hear())

    def run(self, seconds: float) -> float:
        """Both."""
        self.start(seconds)
        return self.images_per_s()

    def __enter__(self) -> "Worker":
        return self


class WholeModelWorker(Worker):
    """A process pinned to one CPU that runs a graph with one input in onnxruntime, on command."""

    def __init__(self, graph: Path, cpu: int, batch: int, shape: tuple[int, ...]) -> None:
        super().__init__(["bench.workers", str(graph), str(batch), json.dumps(shape)], cpu)


def pixels(batch: int, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The images that every side computes: seeded noise, uint8 (batch, *shape)."""
    return np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)


def obey(compute: Callable[[], Any], batch: int, lines: TextIO, answers: TextIO) -> None:
    """A worker's side: warm up, then compute for as long as each line says."""
    for _ in range(WARM_UP_RUNS):
        compute()
    print("warm", file=answers, flush=True)
    for line in lines:
        end = time.perf_counter() + float(line)
        started, images = time.perf_counter(), 0
        while time.perf_counter() < end:
            compute()
            images += batch
        print(images / (time.perf_counter() - started), file=answers, flush=True)


def _serve(graph: Path, batch: int, shape: tuple[int, ...]) -> None:
    session = open_session(graph, threads=1)
    (first,) = session.get_inputs()
    images = pixels(batch, shape)
    # A stage behind the first takes floats: of a size that occurs, since denormal ones are slow.
    floats = (images / 128 - 1).astype(np.float32)
    inputs = {first.name: images if first.type == "tensor(uint8)" else floats}
    obey(lambda: run_session(session, inputs), batch, sys.stdin, sys.stdout)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]), tuple(json.loads(sys.argv[3])))
