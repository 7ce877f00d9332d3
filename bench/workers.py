"""Processes that the benchmarks compare with: pinned, idle until told to run for a while."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import numpy as np

from shards.session import open_session, run_session


class WholeModelWorker:
    """A process pinned to one CPU that runs a graph with one input in onnxruntime, on command."""

    def __init__(self, graph: Path, cpu: int, batch: int, shape: tuple[int, ...]) -> None:
        command = ["taskset", "-c", str(cpu), sys.executable, "-m", "bench.workers"]
        command += [str(graph), str(batch), json.dumps(shape)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()  # it says so when it is warm

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def start(self, seconds: float) -> None:
        """Let it run for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def images_per_s(self) -> float:
        """What it reached since :meth:`start`; waits for it."""
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        return line

    def __enter__(self) -> "WholeModelWorker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _serve(graph: Path, batch: int, shape: tuple[int, ...]) -> None:
    session = open_session(graph, threads=1)
    (first,) = session.get_inputs()
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (batch, *shape), dtype=np.uint8)
    # A stage behind the first takes floats: of a size that occurs, since denormal ones are slow.
    floats = (pixels / 128 - 1).astype(np.float32)
    inputs = {first.name: pixels if first.type == "tensor(uint8)" else floats}
    for _ in range(3):
        run_session(session, inputs)
    print("warm", flush=True)
    for line in sys.stdin:
        end = time.perf_counter() + float(line)
        started, images = time.perf_counter(), 0
        while time.perf_counter() < end:
            run_session(session, inputs)
            images += batch
        print(images / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]), tuple(json.loads(sys.argv[3])))
