"""How long a stage takes from its start to its first result, and its memory on the way.

    python -m bench.start_up [--models mobilenet_v2,resnet50] [--rounds 5]

The real `shardline stage` with the whole model as its one stage, on one processor; the plan is
published before it starts and the shard lies beside it. Online: its status is heard. Ready: the
shard is loaded. First result: a client that waits for nothing else has it. In each round a process
that does nothing but `import torch` starts, too: what a stage would pay before its first line if it
ran PyTorch. The first round warms the disk's cache and is not counted. Where the time of the
imports goes: bench.imports.
"""

import queue
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.pinned_pipeline import Pair, models, prepare
from bench.processes import confine_to_two_cpus, on_cpu, resident
from bench.results import PLANS, Recorder, parser
from bench.rounds import ratio_spread, spread, take_turns
from bench.tables import figure, ratio, text
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import Callbacks, ConnectionSettings, Delivery
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.plan import Plan
from contract.status import DeviceState, DeviceStatus, ShardState, parse_status
from planner.publish import Publisher

TORCH = "import torch"
STEPS = ("online", "ready", "first result")
TIMEOUT_S = 60.0
COLUMNS = (
    text("process", "process"),
    text("until", "until"),
    ratio("seconds", "seconds"),
    ratio("times `import torch`", "of_torch"),
    figure("resident MB", "resident_mb", 0),
)
Moment = tuple[float, float]
"""Seconds since the start of the process, and resident bytes then."""


class Starter:
    """Starts one device again and again, with a watcher and a client that wait for it."""

    def __init__(self, plan: Plan, folder: Path, batch: Batch, cpu: int, stack: ExitStack) -> None:
        self._device = plan.placement[0].replicas[0].device
        self._batch, self._cpu = batch, cpu
        self._heard: queue.SimpleQueue[tuple[float, DeviceStatus]] = queue.SimpleQueue()
        broker = stack.enter_context(EmbeddedBroker())
        connect = Connector(broker.address)
        self._command = [sys.executable, "-m", "shardline", "stage", "--threads", "1"]
        self._command += ["--device", self._device, "--broker", str(broker.address)]
        self._command += ["--shards", str(folder / plan.name)]
        watcher = connect(ConnectionSettings(name="watcher"), Callbacks(self._hear))
        stack.callback(watcher.close, forget_session=True)
        watcher.subscribe(topics.status_topic(topics.DEFAULT_CLUSTER, self._device))
        with Publisher(connect, topics.DEFAULT_CLUSTER, "planner") as publisher:
            publisher.publish(plan)
        self._client = stack.enter_context(Pipeline(ClientSettings("bench"), connect))
        self._is_open = False

    def _hear(self, delivery: Delivery) -> None:
        status = parse_status(delivery.payload, self._device)
        if not delivery.retained:
            self._heard.put((time.perf_counter(), status))
        delivery.ack()

    def start(self) -> dict[str, Moment]:
        """One start, to its end; the moments of :data:`STEPS`."""
        started = time.perf_counter()
        process = subprocess.Popen(on_cpu(self._cpu, self._command), stderr=subprocess.DEVNULL)
        try:
            moments = {
                "online": self._wait(DeviceState.ONLINE, None, started, process.pid),
                "ready": self._wait(DeviceState.ONLINE, ShardState.READY, started, process.pid),
            }
            if not self._is_open:
                self._client.open()
                self._is_open = True
            (end,) = self._client.run([self._batch])
            if not isinstance(end, BatchResult):
                raise RuntimeError(f"the first batch was given up: {end}")
            moments["first result"] = (time.perf_counter() - started, resident(process.pid)[0])
        finally:
            process.terminate()
            process.wait()
        self._wait(DeviceState.STOPPED, None, started, None)
        return moments

    def _wait(
        self, state: DeviceState, shard: ShardState | None, started: float, pid: int | None
    ) -> Moment:
        while True:
            at, status = self._heard.get(timeout=TIMEOUT_S)
            if status.shard is ShardState.FAILED:
                raise RuntimeError(f"{self._device} cannot load its shard: {status.error}")
            if status.state is state and (shard is None or status.shard is shard):
                return at - started, 0.0 if pid is None else resident(pid)[0]


def import_torch(cpu: int) -> dict[str, Moment]:
    """A process that imports torch and nothing else."""
    code = "import torch, sys; print('ready', flush=True); sys.stdin.read()"
    started = time.perf_counter()
    with subprocess.Popen(
        on_cpu(cpu, [sys.executable, "-c", code]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return {TORCH: (time.perf_counter() - started, resident(process.pid)[0])}


def measure(pair: Pair, cpu: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    with ExitStack() as stack:
        starter = Starter(pair.whole, pair.folder, pair.images(), cpu, stack)
        sides = {"stage": starter.start, TORCH: lambda: import_torch(cpu)}
        take_turns(sides, 1)
        found = take_turns(sides, rounds)
    torch_s = [one[TORCH][0] for one in found[TORCH]]
    rows = [_row(f"stage with {pair.model}", step, found["stage"], torch_s) for step in STEPS]
    return [*rows, _row("nothing else", TORCH, found[TORCH], torch_s)]


def _row(
    process: str, step: str, starts: list[dict[str, Moment]], torch_s: list[float]
) -> dict[str, Any]:
    seconds = [moments[step][0] for moments in starts]
    return {
        "process": process,
        "until": step,
        "seconds": spread(seconds),
        "of_torch": ratio_spread(seconds, torch_s),
        "resident_mb": spread([moments[step][1] / 1e6 for moments in starts], 1)["median"],
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--models", default="mobilenet_v2,resnet50", help="or all: six CNNs")
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    cpu, _ = confine_to_two_cpus()
    recorder = Recorder("start_up", COLUMNS, chosen.json)
    for model in models(chosen.models):
        for row in measure(prepare(model, 1, chosen.plans), cpu, chosen.rounds):
            recorder.add(row)
    recorder.finish()


if __name__ == "__main__":
    main()
