"""Two stages over MQTT against two independent whole-model processes, and against window 1.

    python -m bench.pipeline [--models mobilenet_v2,resnet50 | all] [--batches 1,8] [--rounds 5]

Both sides run onnxruntime with one thread a process; stage and worker k are pinned to one of two
processors, broker and client share the same two unpinned, as they must on a machine that has no
others. The sides take turns; each ratio is taken within one round. The limit of a two-stage
pipeline on two CPUs is 1.0: all CPU spent on moving activations is missing from it. With a window
of 1 the stages take turns, too, and one of them always waits.
"""

import itertools
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.pinned_pipeline import Pair, PinnedPipeline, models, prepare, run_pipeline
from bench.processes import confine_to_two_cpus, cpu_seconds
from bench.results import PLANS, Recorder, numbers, parser
from bench.rounds import long_enough, ratio_spread, spread, take_turns
from bench.tables import figure, figures, ratio, text
from bench.workers import WholeModelWorker
from client.batch import BatchResult
from client.settings import ClientSettings

WARM_UP_S = 1.0
COLUMNS = (
    text("model", "model"),
    text("batch", "batch"),
    ratio("of two whole-model processes", "of_limit"),
    ratio("times window 1", "over_window_1"),
    figure("cut, KB an image", "cut_kb", 0),
    figures("computing, ms: stage 0, stage 1", "compute_ms"),
    figures("CPU ms a batch: stage 0, stage 1, broker, client", "cpu_ms"),
)


def measure(
    pair: Pair, rounds: int, seconds: float, cpus: tuple[int, int], window: int | None = None
) -> dict[str, Any]:
    """One row of the table."""
    with ExitStack() as stack:
        site = stack.enter_context(PinnedPipeline(pair.pipeline, pair.folder, cpus))
        workers = [
            stack.enter_context(WholeModelWorker(pair.whole_graph, cpu, pair.batch, pair.shape))
            for cpu in cpus
        ]
        full = site.client(ClientSettings("bench", window=window))
        single = site.client(ClientSettings("bench-1", window=1))
        batch = pair.images()
        results: list[BatchResult] = []
        spent = dict.fromkeys(site.watched, 0.0)

        def pipelined() -> float:
            before = cpu_seconds(site.watched)
            rate, came = run_pipeline(full, batch, seconds)
            for name, total in cpu_seconds(site.watched).items():
                spent[name] += total - before[name]
            results.extend(came)
            return rate

        def independent() -> float:
            for worker in workers:
                worker.start(seconds)
            return sum(worker.images_per_s() for worker in workers)

        run_pipeline(single, batch, WARM_UP_S)
        rate, _ = run_pipeline(full, batch, WARM_UP_S)
        seconds = long_enough(seconds, rate / pair.batch)
        sides = {
            "pipeline": pipelined,
            "two processes": independent,
            "window 1": lambda: run_pipeline(single, batch, seconds)[0],
        }
        rates = take_turns(sides, rounds)
        lost = full.counts().lost + single.counts().lost
    return {
        "model": pair.model,
        "batch": pair.batch,
        "window": full.window,
        "of_limit": ratio_spread(rates["pipeline"], rates["two processes"]),
        "over_window_1": ratio_spread(rates["pipeline"], rates["window 1"]),
        "images_per_s": {name: spread(values, 1) for name, values in rates.items()},
        "cut_kb": pair.pipeline.stages[0].output_bytes_per_image / 1e3,
        "compute_ms": compute_ms(results, pair.pipeline.num_stages),
        "cpu_ms": {name: round(s / len(results) * 1e3, 2) for name, s in spent.items()},
        "lost": lost,
    }


def compute_ms(results: list[BatchResult], stages: int) -> list[float]:
    """Median time in the engine of each stage, from the batches' own traces."""
    return [
        round(
            statistics.median(r.hops[i].finished_us - r.hops[i].started_us for r in results) / 1e3,
            2,
        )
        for i in range(stages)
    ]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=5, seconds=3.0)
    options.add_argument("--models", default="mobilenet_v2,resnet50", help="or all: six CNNs")
    options.add_argument("--batches", type=numbers, default=[1, 8])
    options.add_argument("--window", type=int, help="batches in flight; default: as of a client")
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    cpus = confine_to_two_cpus()
    recorder = Recorder("pipeline", COLUMNS, chosen.json)
    for model, batch in itertools.product(models(chosen.models), chosen.batches):
        pair = prepare(model, batch, chosen.plans)
        recorder.add(measure(pair, chosen.rounds, chosen.seconds, cpus, chosen.window))
    recorder.finish()


if __name__ == "__main__":
    main()
