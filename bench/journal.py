"""Throughput with a journal against without, taken in turns in one run.

    python -m bench.journal [--rounds 7] [--seconds 3] [--sizes 4,75] [--model mobilenet_v2]

Two clients feed the same devices by the same broker, one round each, in alternating order: one with
a journal on this machine's disk, one without. First a one-stage plan with the identity engine,
which does nothing to a tensor: the messages are all there is, so the journal weighs most. Then a
model in two stages (``--model ''`` leaves it out). The journal keeps each input too (``inputs``),
as for a program, or only where it was read (``positions``), as for `shardline infer`.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.identity_plan import make_identity_plan
from bench.pinned_pipeline import prepare, start_stages
from bench.results import PLANS, Recorder, parser
from bench.rounds import ratio_spread
from bench.tables import figure, ratio, text
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from client.batch import Batch, BatchResult
from client.journal import Journal, Synchronous
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.plan import Plan
from planner.publish import Publisher

WARM_UP_S = 1.0
COLUMNS = (
    text("work", "work"),
    text("kept", "kept"),
    text("synchronous", "synchronous"),
    ratio("batches/s, with / without", "ratio"),
    figure("without", "without_batches_per_s"),
    figure("with", "with_batches_per_s"),
    figure("client CPU ms a batch, without", "without_cpu_ms", 2),
    figure("with", "with_cpu_ms", 2),
    figure("journal, KB a batch", "journal_kb_per_batch"),
)


def rate(
    pipeline: Pipeline, batch: Batch, seconds: float, *, positions: bool
) -> tuple[float, float]:
    """Batches a second over ``seconds`` of a full window, and this process's CPU ms for each."""

    def work() -> Iterator[Batch]:
        end = time.perf_counter() + seconds
        count = 0
        while time.perf_counter() < end:
            yield replace(batch, positions=(count, count + 1)) if positions else batch
            count += 1

    started, cpu = time.perf_counter(), time.process_time()
    reread = (lambda _batch: batch) if positions else None
    ends = list(pipeline.run(work(), reread=reread))
    assert all(isinstance(end, BatchResult) for end in ends)
    cpu_ms = (time.process_time() - cpu) * 1000 / len(ends)
    return len(ends) / (time.perf_counter() - started), cpu_ms


def start_identity(folder: Path, broker: EmbeddedBroker, size_bytes: int, stack: ExitStack) -> Plan:
    """One stage process that gives back what it gets."""
    plan = make_identity_plan(folder, size_bytes)
    command = [sys.executable, "-m", "shardline", "stage", "--device", "pi-0", "--shards"]
    command += [str(folder), "--broker", str(broker.address), "--engine", "identity"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return plan


def measure(
    name: str,
    rounds: int,
    seconds: float,
    synchronous: Synchronous,
    *,
    positions: bool,
    plans: Path,
) -> dict[str, object]:
    """One row: ``name`` is a number of kilobytes or a model."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=plans)))
        broker = stack.enter_context(EmbeddedBroker())
        connect = Connector(broker.address)
        if name.isdigit():
            plan = start_identity(folder, broker, int(name) * 1000, stack)
        else:
            plan = prepare(name, 1, plans).pipeline
            start_stages(plan, plans, str(broker.address), stack)
        with Publisher(connect, "default", "planner") as publisher:
            publisher.publish(plan)
            publisher.wait_until_ready(plan, 60, lambda _step, _fraction: None)
        journal = Journal(folder / "bench.journal", synchronous)
        written = Pipeline(ClientSettings(journal.client_name()), connect, journal=journal)
        bare = Pipeline(ClientSettings("bench"), connect)
        pipelines = [(stack.enter_context(bare), False), (stack.enter_context(written), positions)]
        (spec,) = plan.stages[0].inputs
        shape = (1, *(int(size) for size in spec.shape[1:]))
        tensor = np.random.default_rng(0).integers(0, 255, shape).astype(spec.dtype)
        batch = Batch({spec.name: tensor}, ("a picture.jpg",), (None,))
        for pipeline, with_positions in pipelines:
            pipeline.open()
            rate(pipeline, batch, WARM_UP_S, positions=with_positions)
        rates: list[list[float]] = [[], []]
        cpu_ms: list[list[float]] = [[], []]
        for number in range(rounds):
            for which in (0, 1) if number % 2 else (1, 0):  # neither is always the first
                pipeline, with_positions = pipelines[which]
                per_s, each_ms = rate(pipeline, batch, seconds, positions=with_positions)
                rates[which].append(per_s)
                cpu_ms[which].append(each_ms)
        count = journal.next_seq()
        size_bytes = (folder / "bench.journal").stat().st_size
    return {
        "work": f"{name} KB" if name.isdigit() else name,
        "kept": "positions" if positions else "inputs",
        "synchronous": synchronous,
        "ratio": ratio_spread(rates[1], rates[0]),
        "without_batches_per_s": round(statistics.median(rates[0]), 1),
        "with_batches_per_s": round(statistics.median(rates[1]), 1),
        "without_cpu_ms": round(statistics.median(cpu_ms[0]), 2),
        "with_cpu_ms": round(statistics.median(cpu_ms[1]), 2),
        "journal_kb_per_batch": round(size_bytes / max(1, count) / 1e3, 1),
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=7, seconds=3.0)
    options.add_argument("--sizes", default="4,75", help="kilobytes")
    options.add_argument("--model", default="mobilenet_v2")
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    chosen.plans.mkdir(parents=True, exist_ok=True)
    works = [*chosen.sizes.split(","), *filter(None, [chosen.model])]
    modes: list[tuple[Synchronous, bool]] = [("normal", True), ("normal", False), ("full", True)]
    recorder = Recorder("journal", COLUMNS, chosen.json)
    for work in works:
        for synchronous, positions in modes:
            recorder.add(
                measure(
                    work,
                    chosen.rounds,
                    chosen.seconds,
                    synchronous,
                    positions=positions,
                    plans=chosen.plans,
                )
            )
    recorder.finish()


if __name__ == "__main__":
    main()
