"""Two stages over MQTT against two independent whole-model processes on the same two CPUs.

    python -m bench.pipeline [--models mobilenet_v2,resnet50] [--batches 1,8] [--rounds 5]

Both sides run onnxruntime with one thread a process; stage and worker k are pinned to CPU k, broker
and client share the same two CPUs unpinned, as they must on a machine that has no others. Rounds of
the two sides alternate; each ratio is taken within one round pair. The limit of a two-stage
pipeline on two CPUs is 1.0: all CPU spent on moving activations is missing from it.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import psutil

from bench.workers import WholeModelWorker
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.errors import PlanError
from contract.plan import Plan, Replica, load_plan
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportOptions, import_model
from planner.publish import Publisher
from planner.request import PlanRequest

WARM_UP_S = 1.0


def prepare(model: str, batch: int, folder: Path) -> tuple[Plan, Plan]:
    """The model in two stages and, the same way, in one: (pipeline, whole)."""
    names = [f"{model}-{batch}-{stages}" for stages in (2, 1)]
    with suppress(PlanError):  # there is none yet, or of an older format
        pipeline, whole = (load_plan(folder / name) for name in names)
        return pipeline, whole
    imported = import_model(f"torchvision:{model}", ImportOptions(weights="random"))
    graph = segment_graph(canonicalise(imported))
    plans = []
    for stages in (2, 1):
        devices = tuple(
            (Replica(device=f"{model}-{batch}-{i}".replace("_", "-")),) for i in range(stages)
        )
        request = PlanRequest(
            f"{model}-{batch}-{stages}",
            folder,
            num_stages=stages,
            batch_size=batch,
            devices=devices,
        )
        plans.append(build_plan(imported, graph, request))
    return plans[0], plans[1]


def start_stages(plan: Plan, folder: Path, broker: str, stack: ExitStack) -> list[psutil.Process]:
    """One stage process on each CPU."""
    running = []
    for cpu, place in enumerate(plan.placement):
        command = ["taskset", "-c", str(cpu), sys.executable, "-m", "shardline", "stage"]
        command += ["--device", place.replicas[0].device, "--shards", str(folder / plan.name)]
        command += ["--broker", broker, "--threads", "1"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        running.append(psutil.Process(process.pid))
    return running


def run_pipeline(
    pipeline: Pipeline, batch: Batch, seconds: float
) -> tuple[float, list[BatchResult]]:
    """Images per second over ``seconds`` of full window, and the results."""

    def work() -> Iterator[Batch]:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            yield batch

    started = time.perf_counter()
    results = [end for end in pipeline.run(work()) if isinstance(end, BatchResult)]
    return len(results) * batch.images / (time.perf_counter() - started), results


def cpu_seconds(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """CPU time so far by name."""
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


def measure(
    model: str, batch_size: int, rounds: int, seconds: float, window: int | None, folder: Path
) -> dict[str, object]:
    """One row of the table."""
    with ExitStack() as stack:
        plan, whole = prepare(model, batch_size, folder)
        shape = tuple(int(size) for size in plan.stages[0].inputs[0].shape[1:])
        broker = stack.enter_context(EmbeddedBroker())
        connect: Connect = Connector(broker.address)
        processes = start_stages(plan, folder, str(broker.address), stack)
        with Publisher(connect, "default", "planner") as publisher:
            publisher.publish(plan)
            publisher.wait_until_ready(plan, 60, lambda _step, _fraction: None)
        graph = folder / whole.name / "stage-0" / "graph.onnx"
        workers = [
            stack.enter_context(WholeModelWorker(graph, cpu, batch_size, shape)) for cpu in (0, 1)
        ]
        pipeline = stack.enter_context(Pipeline(ClientSettings("bench", window=window), connect))
        pipeline.open()
        generator = np.random.default_rng(0)
        batch = Batch(
            {"image": generator.integers(0, 256, (batch_size, *shape), dtype=np.uint8)},
            tuple(map(str, range(batch_size))),
        )
        run_pipeline(pipeline, batch, WARM_UP_S)
        watched = dict(zip(("stage 0", "stage 1"), processes, strict=True))
        watched |= {"broker": psutil.Process(broker.pid), "client": psutil.Process()}
        ratios, pipelined, independent = [], [], []
        spent = dict.fromkeys(watched, 0.0)
        results: list[BatchResult] = []
        for _ in range(rounds):
            before = cpu_seconds(watched)
            rate, came = run_pipeline(pipeline, batch, seconds)
            after = cpu_seconds(watched)
            spent = {key: spent[key] + after[key] - before[key] for key in spent}
            results += came
            for worker in workers:
                worker.start(seconds)
            limit = sum(worker.images_per_s() for worker in workers)
            pipelined.append(rate)
            independent.append(limit)
            ratios.append(rate / limit)
        counts = pipeline.counts()
    computes = [
        statistics.median(r.hops[i].finished_us - r.hops[i].started_us for r in results) / 1000
        for i in range(plan.num_stages)
    ]
    return {
        "model": model,
        "batch": batch_size,
        "cut_bytes_per_image": plan.stages[0].output_bytes_per_image,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "pipeline_images_per_s": round(statistics.median(pipelined), 1),
        "two_processes_images_per_s": round(statistics.median(independent), 1),
        "compute_ms": [round(value, 2) for value in computes],
        "cpu_ms_per_batch": {
            k: round(v / max(1, len(results)) * 1000, 2) for k, v in spent.items()
        },
        "lost": counts.lost,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="mobilenet_v2,resnet50")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--window", type=int, default=None)
    parser.add_argument("--plans", type=Path, default=Path("shards/built/bench"))
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    rows = []
    print("two stages over MQTT / two independent processes, same two CPUs (limit 1.0)")
    print(
        "model         batch  ratio (min…max)      pipeline  2 processes  compute ms     cut KB  "
        "CPU ms a batch"
    )
    for model, batch in itertools.product(
        arguments.models.split(","), map(int, arguments.batches.split(","))
    ):
        row = measure(
            model, batch, arguments.rounds, arguments.seconds, arguments.window, arguments.plans
        )
        rows.append(row)
        print(
            f"{model:13} {batch:5}"
            f"  {row['ratio']:.3f} ({row['ratio_min']:.3f}…{row['ratio_max']:.3f})"
            f"  {row['pipeline_images_per_s']:9}  {row['two_processes_images_per_s']:11}"
            f"  {row['compute_ms']!s:13}  {row['cut_bytes_per_image'] / 1e3:6.1f}"  # type: ignore[operator]
            f"  {row['cpu_ms_per_batch']}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
