"""The demo's parts: stage processes, and the judgement whether everything that it claims held."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.batch import BatchResult
from client.results import first_output
from contract.errors import EngineError
from contract.metrics import Ledger
from contract.plan import Plan

LOG_LINES_SHOWN = 15


@contextmanager
def stage_processes(
    devices: Sequence[str], shards: Path, broker: str
) -> Iterator[Callable[[], None]]:
    """One `shardline stage` process for each device, with one thread each; ended at the exit.

    Yields a check that raises EngineError, with the end of its log, when one has ended by itself.
    """
    with tempfile.TemporaryDirectory(prefix="shardline-demo-") as folder:
        logs = [Path(folder) / f"{device}.log" for device in devices]
        processes = [
            _start(device, shards, broker, log) for device, log in zip(devices, logs, strict=True)
        ]

        def check() -> None:
            for device, process, log in zip(devices, processes, logs, strict=True):
                if process.poll() is not None:
                    tail = "\n".join(log.read_text().splitlines()[-LOG_LINES_SHOWN:])
                    raise EngineError(
                        f"the stage process {device} ended with {process.returncode}:\n{tail}"
                    )

        try:
            yield check
            check()
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _start(device: str, shards: Path, broker: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shardline", "stage", "--device", device]
    command += ["--shards", str(shards), "--broker", broker, "--threads", "1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHARDLINE_")}
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the demo found, beside what the whole model says about the same images."""

    images: int
    pipeline_correct: int
    whole_correct: int
    labelled: int
    top1_disagreements: int
    max_abs_difference: float
    max_abs_reference: float
    tolerance: float
    ledger: Ledger

    @property
    def failures(self) -> list[str]:
        """Every claim that did not hold; empty when all is well."""
        found = []
        ledger = self.ledger
        if ledger.lost or ledger.dead or ledger.submitted != ledger.delivered:
            found.append(f"{ledger.lost} batches lost, {ledger.dead} dead")
        if self.max_abs_difference > self.tolerance * self.max_abs_reference:
            found.append("the pipeline's answers differ from the whole model's")
        if self.top1_disagreements:
            found.append(f"the best class differs on {self.top1_disagreements} images")
        if self.pipeline_correct != self.whole_correct:
            found.append("the pipeline's accuracy is not the whole model's")
        if not self.images:
            found.append("no image came back")
        return found


def judge(
    results: Sequence[BatchResult],
    whole_answers: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
    ledger: Ledger,
    tolerance: float,
) -> Judgement:
    """Compare each result with the whole model's answer for the same batch; (images, classes)."""
    pipeline_correct = whole_correct = labelled = disagreements = images = 0
    difference = largest = 0.0
    for result, answer in zip(results, whole_answers, strict=True):
        got, expected = first_output(result), answer.reshape(answer.shape[0], -1)
        difference = max(difference, float(np.abs(got - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        best, best_whole = got.argmax(axis=1), expected.argmax(axis=1)
        disagreements += int((best != best_whole).sum())
        images += len(got)
        for label, mine, whole in zip(result.batch.labels, best, best_whole, strict=False):
            if label is not None:
                labelled += 1
                pipeline_correct += int(mine == label)
                whole_correct += int(whole == label)
    return Judgement(
        images=images,
        pipeline_correct=pipeline_correct,
        whole_correct=whole_correct,
        labelled=labelled,
        top1_disagreements=disagreements,
        max_abs_difference=difference,
        max_abs_reference=largest,
        tolerance=tolerance,
        ledger=ledger,
    )


def stage_shares(results: Sequence[BatchResult], plan: Plan) -> list[float]:
    """Each stage's share of the computing time of all results, adding up to 1."""
    totals = [
        float(
            sum(
                result.hops[index].finished_us - result.hops[index].started_us for result in results
            )
        )
        for index in range(plan.num_stages)
    ]
    whole = sum(totals) or 1.0
    return [total / whole for total in totals]
