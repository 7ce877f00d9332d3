"""One side of bench.versions: a pipeline of whatever checkout PYTHONPATH names, run by its path.

    PYTHONPATH=CHECKOUT python -P bench/versions_driver.py '{"plan": …, "shards": …, …}'

It imports the product alone, nothing of bench/, which belongs to another checkout. It answers each
line, a number of seconds, with batches a second and processor ms for a batch, of all processes.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from client.batch import Batch
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.plan import load_plan
from planner.publish import Publisher

CLUSTER = "default"
WARM_UP_S = 1.0


def run(pipeline: Pipeline, batch: Batch, seconds: float) -> tuple[int, float]:
    """Batches that came back, and the seconds that took."""

    def work() -> Iterator[Batch]:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            yield batch

    started = time.perf_counter()
    count = sum(1 for _end in pipeline.run(work()))
    return count, time.perf_counter() - started


def main() -> None:
    """Start broker and stages, then obey."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    plan = load_plan(Path(told["plan"]))
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        connect = Connector(broker.address)
        processes = [psutil.Process(), psutil.Process(broker.pid)]
        for cpu, place in zip(told["cpus"], plan.placement, strict=False):
            command = ["taskset", "-c", str(cpu), sys.executable, "-P", "-m", "shardline", "stage"]
            command += ["--device", place.replicas[0].device, "--shards", told["shards"]]
            command += ["--broker", str(broker.address), "--threads", "1"]
            command += ["--engine", told["engine"]]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(psutil.Process(process.pid))
        with Publisher(connect, CLUSTER, "planner") as publisher:
            publisher.publish(plan)
            publisher.wait_until_ready(plan, 60.0, lambda _step, _fraction: None)
        pipeline = stack.enter_context(Pipeline(ClientSettings("bench"), connect))
        pipeline.open()
        (spec,) = plan.stages[0].inputs
        shape = (plan.batch_size, *(int(size) for size in spec.shape[1:]))
        tensor = np.random.default_rng(0).integers(0, 255, shape).astype(spec.dtype)
        batch = Batch({spec.name: tensor}, ("x",) * plan.batch_size)
        run(pipeline, batch, WARM_UP_S)
        print("warm", flush=True)
        for line in sys.stdin:
            before = sum(sum(p.cpu_times()[:2]) for p in processes)
            count, seconds = run(pipeline, batch, float(line))
            spent = sum(sum(p.cpu_times()[:2]) for p in processes) - before
            print(json.dumps([count / seconds, spent / count * 1e3]), flush=True)


if __name__ == "__main__":
    main()
