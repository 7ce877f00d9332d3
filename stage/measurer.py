"""Answers the planner's :class:`contract.command.Measure`, beside everything else the agent does.

One measurement at a time, in a thread that waits for processes of `stage.measure`: one with
weights prepacked, one without. The agent goes on with its batches, its metrics and its answers.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

import stage
from broker.transport import Connection, PublishOutcome
from contract import topics
from contract.command import LinkProbe, Measure, Measured, Measuring, Timings
from contract.errors import EngineError, ShardError, ShardlineError
from shards.cache import SPARE_BYTES, ShardCache
from shards.manifest import GRAPH_FILE
from stage.machine import temperature_celsius, throttled
from stage.measure_job import Job, Outcome, read_outcome

PROGRESS_INTERVAL_S = 2.0
LIMIT_S = 900.0
"""How long one process may take beyond what it was asked for: a slow board needs minutes."""
ENGINE = "onnxruntime"
SETTINGS = "SHARDLINE_"
_FOLDER = "measuring-"

log = logging.getLogger(__name__)


class _UnwantedError(EngineError):
    """The agent ends, or the asker is gone."""


class Measurer:
    """Measures graphs that the fetcher got. Answers on the answer topic of whoever asked."""

    def __init__(
        self,
        cluster: str,
        device: str,
        connection: Connection,
        cache: ShardCache,
        engine: str,
        threads: int,
        holds_shard: Callable[[], bool],
    ) -> None:
        """``engine`` and ``threads`` are those of the agent's shards."""
        self._cluster, self._device, self._connection = cluster, device, connection
        self._cache, self._engine, self._threads = cache, engine, threads
        self._holds_shard = holds_shard
        self._lock = threading.Lock()
        self._current: Measure | None = None
        self._asker = ""
        self._last: Measured | None = None
        self._unwanted = threading.Event()
        self._thread: threading.Thread | None = None

    def request(self, measure: Measure, asker: str) -> None:
        """Begin, unless it is under way or done already. Never waits."""
        with self._lock:
            current = self._current
            if current is None and (
                self._last is None or self._last.request_id != measure.request_id
            ):
                self._current, self._asker = measure, asker
                self._unwanted.clear()
                self._thread = threading.Thread(
                    target=self._work, args=(measure, asker), name="measurer", daemon=True
                )
                self._thread.start()
                return
        if current is None and self._last is not None:
            self.answer(asker, self._last)  # the first answer was lost on its way
        elif current is not None and current.request_id == measure.request_id:
            self.answer(asker, Measuring(request_id=measure.request_id, step="under way"))
        else:
            taken = f"{self._device} measures for {self._asker} already; ask again later"
            self.answer(asker, Measured(request_id=measure.request_id, error=taken))

    def close(self) -> None:
        """End what is under way."""
        self._unwanted.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def answer(self, asker: str, message: Measuring | Measured | LinkProbe) -> None:
        """Tell ``asker``; who is no longer there makes this measurement unwanted."""
        topic = topics.answer_topic(self._cluster, asker, self._device)
        try:
            future = self._connection.publish(topic, message.model_dump_json().encode())
        except ShardlineError as error:
            log.warning("%s was not answered: %s", asker, error)
            return
        if isinstance(message, Measuring):
            future.add_done_callback(self._told)

    def _told(self, future: Future[PublishOutcome]) -> None:
        if future.exception() is None and future.result() is PublishOutcome.NO_SUBSCRIBER:
            self._unwanted.set()

    def _work(self, measure: Measure, asker: str) -> None:
        self.answer(asker, Measuring(request_id=measure.request_id, step="begun"))
        before, busy = temperature_celsius(), self._holds_shard()
        timings, error = None, None
        try:
            timings = self._measure(measure, asker)
        except _UnwantedError as gone:
            log.info("a measurement was given up: %s", gone)
            error = str(gone)
        except ShardlineError as failure:
            error = str(failure)
        except Exception as failure:
            log.exception("a measurement was given up")
            error = f"{type(failure).__name__}: {failure}"
        measured = Measured(
            request_id=measure.request_id,
            timings=timings,
            error=error[:2000] if error is not None else None,
            busy=busy or self._holds_shard(),
            temperature_before_celsius=before,
            temperature_after_celsius=temperature_celsius(),
            throttled=throttled(),
        )
        with self._lock:
            self._last, self._current = measured, None
        self.answer(asker, measured)

    def _measure(self, measure: Measure, asker: str) -> Timings:
        if self._engine != ENGINE:
            raise EngineError(
                f"{self._device} runs shards with {self._engine}; only {ENGINE} can be measured"
            )
        root = self._cache.root
        for leftover in root.glob(f"{_FOLDER}*"):  # of an agent that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        if measure.weights_size_bytes + SPARE_BYTES > free:
            raise ShardError(
                f"{root}: needs {measure.weights_size_bytes / 1e6:,.1f} MB for made-up weights, "
                f"has {max(0, free - SPARE_BYTES) / 1e6:,.1f} MB free; make room on this device"
            )
        with tempfile.TemporaryDirectory(prefix=_FOLDER, dir=root) as folder:
            self._cache.copy_out(measure.graph, Path(folder) / GRAPH_FILE)
            packed = self._run(measure, asker, Path(folder), prepack=True)
            unpacked = self._run(measure, asker, Path(folder), prepack=False)
        return Timings(
            whole_ms=packed.whole_ms,
            kernels=packed.kernels,
            unpacked_whole_ms=unpacked.whole_ms,
            base_bytes=packed.base_bytes,
            load_peak_bytes=packed.load_peak_bytes,
            peak_bytes=packed.peak_bytes,
            unpacked_peak_bytes=unpacked.peak_bytes,
            sustained_share=packed.sustained_share,
        )

    def _run(self, measure: Measure, asker: str, folder: Path, *, prepack: bool) -> Outcome:
        job = Job(folder=str(folder), threads=self._threads, prepack=prepack, measure=measure)
        deadline = time.monotonic() + LIMIT_S + measure.sustained_s + 2 * measure.budget_s
        step = "weights prepacked" if prepack else "weights not prepacked"
        document: bytes | None = job.model_dump_json().encode()
        process = subprocess.Popen(
            [sys.executable, "-m", "stage.measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**_harmless(os.environ), "PYTHONPATH": _python_path(), "TMPDIR": str(folder)},
        )
        try:
            while True:
                try:
                    output, errors = process.communicate(document, timeout=PROGRESS_INTERVAL_S)
                    break
                except subprocess.TimeoutExpired:
                    document = None  # written by now
                    self.answer(asker, Measuring(request_id=measure.request_id, step=step))
                if self._unwanted.is_set():
                    raise _UnwantedError(f"{asker} is gone, or the agent of {self._device} ends")
                if time.monotonic() > deadline:
                    raise EngineError(f"no end after {LIMIT_S:.0f} s; use a smaller batch")
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        return read_outcome(process.returncode, output, errors)


def _harmless(environment: Mapping[str, str]) -> dict[str, str]:
    """Without our settings: a process that runs what came over the network needs no password."""
    return {key: value for key, value in environment.items() if not key.startswith(SETTINGS)}


def _python_path() -> str:
    """So that the process finds our packages wherever it runs."""
    root = str(Path(str(stage.__file__)).parent.parent)
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
