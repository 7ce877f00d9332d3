"""Engines on one processor: onnxruntime on our shard, and PyTorch eager, tuned, and compiled.

    python -m bench.engines [--models mobilenet_v2,resnet50 | all] [--batches 1,8] [--rounds 7]

Each engine runs the whole model in a process of its own on the same processor with one thread; they
take turns, one at a time. Ratios are to eager PyTorch as it comes. «channels-last» is eager with
that memory layout. «compiled» is torch.compile with frozen weights (BatchNorm folded, weights
packed); it needs a C++ compiler and says so where there is none. Ready: from the start of the
process to the end of its warm-up, import, building and compiling included.
"""

import itertools
import json
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.pinned_pipeline import Pair, models, prepare, spec_of
from bench.processes import confine_to_two_cpus, resident
from bench.results import PLANS, Recorder, names, numbers, parser
from bench.rounds import ratio_spread, spread, take_turns
from bench.tables import figure, ratio, text
from bench.workers import WholeModelWorker, Worker, WorkerError

OURS, EAGER = "onnxruntime", "torch eager"
WAYS = {EAGER: "eager", "torch channels-last": "channels_last", "torch compiled": "compiled"}
COMPILERS = ("g++", "clang++", "c++")
COLUMNS = (
    text("model", "model"),
    text("batch", "batch"),
    text("engine", "engine"),
    ratio("times eager", "over_eager"),
    figure("ms an image", "ms_per_image", 2),
    figure("resident MB", "resident_mb", 0),
    figure("ready after, s", "ready_s", 1),
)


def compiler() -> str | None:
    """The C++ compiler that torch.compile would find, if any."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def measure(
    pair: Pair, model: str, cpu: int, rounds: int, seconds: float, engines: list[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each engine, and what could not be measured."""
    notes: list[str] = []
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        ready_s: dict[str, float] = {}
        for name in engines:
            started = time.perf_counter()
            try:
                workers[name] = stack.enter_context(_start(name, pair, model, cpu))
            except WorkerError as error:
                notes.append(f"{name}, {pair.model}, batch {pair.batch}: not measured: {error}")
                continue
            ready_s[name] = time.perf_counter() - started
        sides = {name: lambda w=worker: w.run(seconds) for name, worker in workers.items()}
        rates = take_turns(sides, rounds)
        memory = {name: resident(worker.pid)[0] for name, worker in workers.items()}
    return [
        {
            "model": pair.model,
            "batch": pair.batch,
            "engine": name,
            "over_eager": ratio_spread(values, rates[EAGER]),
            "images_per_s": spread(values, 1),
            "ms_per_image": round(1e3 / spread(values)["median"], 3),
            "resident_mb": round(memory[name] / 1e6, 1),
            "ready_s": round(ready_s[name], 2),
        }
        for name, values in rates.items()
    ], notes


def _start(name: str, pair: Pair, model: str, cpu: int) -> Worker:
    if name == OURS:
        return WholeModelWorker(pair.whole_graph, cpu, pair.batch, pair.shape)
    told = {"model": spec_of(model), "batch": pair.batch, "way": WAYS[name], "cpu": cpu}
    return Worker(["bench.rivals.torch_worker", json.dumps(told)], cpu=None)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=7, seconds=1.5)
    options.add_argument("--models", default="mobilenet_v2,resnet50", help="or all: six CNNs")
    options.add_argument("--batches", type=numbers, default=[1, 8])
    options.add_argument("--engines", type=names, default=[OURS, *WAYS])
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    if unknown := set(chosen.engines) - {OURS, *WAYS}:
        options.error(f"no such engine: {', '.join(sorted(unknown))}; {', '.join((OURS, *WAYS))}")
    if EAGER not in chosen.engines:
        options.error(f"all are compared with {EAGER}: it must be among them")
    cpu, _ = confine_to_two_cpus()
    recorder = Recorder("engines", COLUMNS, chosen.json)
    if compiler() is None and "torch compiled" in chosen.engines:
        chosen.engines.remove("torch compiled")
        recorder.note("No C++ compiler here: torch.compile was not measured.")
    for model, batch in itertools.product(models(chosen.models), chosen.batches):
        pair = prepare(model, batch, chosen.plans)
        rows, notes = measure(pair, model, cpu, chosen.rounds, chosen.seconds, chosen.engines)
        for row in rows:
            recorder.add(row)
        for note in notes:
            recorder.note(note)
    recorder.finish()


if __name__ == "__main__":
    main()
