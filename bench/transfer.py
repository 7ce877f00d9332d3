"""How fast a shard reaches a device over a slow link, against a bare TCP stream on the same link.

Makes two network namespaces joined by a pair of virtual cards whose rate is limited both ways (tc
tbf), so it needs root: the device's agent runs in one, broker and planner in the other. Nothing
leaves the machine. Runs, in turn and several times over: a bare TCP stream of the same size (the
line rate), the hand-out of one shard, and the hand-out while a pipeline runs batches over the same
broker. Prints the ratios, the broker's peak memory, and what the transfer cost the pipeline.

    sudo .venv/bin/python -m bench.transfer [--megabytes 100] [--rate-mbit 100] [--rounds 3]
"""

import argparse
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.processes import resident
from broker.connection import Connector
from broker.embedded import find_mosquitto
from broker.mosquitto_conf import MosquittoSettings, render_mosquitto_conf
from broker.transport import BrokerAddress, Connect
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.plan import Plan, Replica, StageSpec, compute_plan_id, load_plan, place
from planner.publish import Publisher
from shards.writer import describe_file

HUB, LEAF = "10.99.0.1", "10.99.0.2"
PORT = 1883


def shell(command: str) -> None:
    """Run a command of the test's own network set-up."""
    subprocess.run(command.split(), check=True, capture_output=True)


@contextlib.contextmanager
def slow_link(rate_mbit: int) -> Iterator[tuple[list[str], list[str]]]:
    """Two namespaces and a link of so many Mbit/s each way; yields the command prefixes."""
    name = secrets.token_hex(2)
    hub, leaf = f"sl-hub-{name}", f"sl-leaf-{name}"
    try:
        for namespace in (hub, leaf):
            shell(f"ip netns add {namespace}")
            shell(f"ip -n {namespace} link set lo up")
        shell(f"ip link add h{name} netns {hub} type veth peer name l{name} netns {leaf}")
        for namespace, card, address in ((hub, f"h{name}", HUB), (leaf, f"l{name}", LEAF)):
            shell(f"ip -n {namespace} addr add {address}/24 dev {card}")
            shell(f"ip -n {namespace} link set {card} up")
            shell(
                f"tc -n {namespace} qdisc add dev {card} root tbf rate {rate_mbit}mbit "
                "burst 32kbit latency 50ms"
            )
        yield [["ip", "netns", "exec", n] for n in (hub, leaf)]  # type: ignore[misc]
    finally:
        for namespace in (hub, leaf):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


RECEIVER = """
import socket, sys
s = socket.create_connection((sys.argv[1], 1884)); left = int(sys.argv[2])
while left:
    left -= len(s.recv(1 << 16))
s.sendall(b"!")
"""


def line_rate(leaf: list[str], size: int) -> float:
    """Bytes a second of a bare TCP stream from the hub (where we are) to the leaf."""
    with socket.create_server((HUB, 1884)) as server:
        command = [*leaf, sys.executable, "-c", RECEIVER, HUB, str(size)]
        with subprocess.Popen(command) as process:
            connection, _ = server.accept()
            started = time.perf_counter()
            block = bytes(1 << 16)
            sent = 0
            while sent < size:
                sent += connection.send(block[: min(len(block), size - sent)])
            connection.recv(1)
            took = time.perf_counter() - started
            connection.close()
            process.wait()
    return size / took


def big_plan(folder: Path, megabytes: int, base: Plan) -> Plan:
    """A plan of one stage whose weights are random bytes: it is handed out and never loaded."""
    stage = base.stages[0]
    target = folder / f"big-{secrets.token_hex(4)}"
    (target / "stage-0").mkdir(parents=True)
    (target / "stage-0" / "graph.onnx").write_bytes(secrets.token_bytes(20_000))
    weights = target / "stage-0" / "weights.safetensors"
    weights.write_bytes(np.random.default_rng().bytes(megabytes * 1_000_000))
    spec = StageSpec.model_validate(
        {
            **dict(stage),
            "outputs": base.stages[-1].outputs,
            "graph": describe_file(target / "stage-0" / "graph.onnx"),
            "weights": describe_file(weights),
        }
    )
    plan = Plan.model_validate(
        {
            **dict(base),
            "name": target.name,
            "stages": (spec,),
            "plan_id": compute_plan_id(base.model.digest, [spec]),
            "placement": (),
            "topic_map": (),
        }
    )
    return place(plan, [[Replica(device="leaf")]], "default")


def hand_out(connect: Connect, plan: Plan, folder: Path) -> float:
    """Bytes a second from request to the verified file on the device."""
    with Publisher(connect, "default", "planner") as publisher:
        started = time.perf_counter()
        publisher.hand_out(plan, folder / plan.name, 60, lambda _what, _share: None)
        took = time.perf_counter() - started
    return (plan.stages[0].weights.size_bytes + plan.stages[0].graph.size_bytes) / took


class Load:
    """Batches of the digits model, one at a time, without a pause: what others must not starve."""

    def __init__(self, connect: Connect, plan: Plan) -> None:
        self._connect, self._plan = connect, plan
        self._stop = threading.Event()
        self.latencies_ms: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        spec = self._plan.stages[0].inputs[0]
        shape = (self._plan.batch_size, *(int(d) for d in spec.shape[1:]))
        tensors = {spec.name: np.zeros(shape, spec.dtype)}

        def work() -> Iterator[Batch]:
            while not self._stop.is_set():
                yield Batch(tensors, ("zeros",) * self._plan.batch_size)

        with Pipeline(ClientSettings(name="feeder", window=1), self._connect) as pipeline:
            pipeline.open()
            for end in pipeline.run(work()):
                assert isinstance(end, BatchResult)
                self.latencies_ms.append(end.latency_ms)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)


def inside(arguments: argparse.Namespace, leaf: list[str]) -> None:
    """The measurement, run in the hub's namespace."""
    digits = Path(arguments.digits)
    base = load_plan(digits)
    with (
        tempfile.TemporaryDirectory(prefix="shardline-transfer-") as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        conf = folder / "mosquitto.conf"
        text = render_mosquitto_conf(MosquittoSettings(port=PORT, bind_address=HUB))
        conf.write_text(text)
        folder.chmod(0o755)
        broker = stack.enter_context(_running([find_mosquitto(), "-c", str(conf)]))
        time.sleep(1)
        connect = Connector(BrokerAddress(HUB, PORT))
        stage = [sys.executable, "-m", "shardline", "stage", "--broker", f"{HUB}:{PORT}"]
        stage += ["--threads", "1"]
        stack.enter_context(
            _running([*leaf, *stage, "--device", "leaf", "--cache", str(folder / "leaf")])
        )
        devices = [f"near-{index}" for index in range(base.num_stages)]
        for device in devices:
            stack.enter_context(
                _running([*stage, "--device", device, "--cache", str(folder / device)])
            )
        plan = place(base, [[Replica(device=device)] for device in devices], "default")
        with Publisher(connect, "default", "planner") as publisher:
            publisher.hand_out(plan, digits, 60, lambda _w, _s: None)
            publisher.publish(plan)
            publisher.wait_until_ready(plan, 60, lambda _w, _s: None)
        before, _ = resident(broker.pid)
        size = arguments.megabytes * 1_000_000
        rows = []
        for round_number in range(arguments.rounds):
            line = line_rate(leaf, size)
            alone = hand_out(connect, big_plan(folder, arguments.megabytes, base), folder)
            with Load(connect, plan) as quiet:
                time.sleep(8)
            with Load(connect, plan) as busy:
                time.sleep(1)
                beside = hand_out(connect, big_plan(folder, arguments.megabytes, base), folder)
            rows.append(
                {
                    "line_mbyte_per_s": line / 1e6,
                    "handed_out_against_line": alone / line,
                    "beside_batches_against_line": beside / line,
                    "batch_ms_p50_quiet": statistics.median(quiet.latencies_ms),
                    "batch_ms_p50_busy": statistics.median(busy.latencies_ms),
                    "batch_ms_p99_quiet": float(np.percentile(quiet.latencies_ms, 99)),
                    "batch_ms_p99_busy": float(np.percentile(busy.latencies_ms, 99)),
                    "batches_quiet": len(quiet.latencies_ms),
                    "batches_busy": len(busy.latencies_ms),
                }
            )
            shown = {name: round(value, 3) for name, value in rows[-1].items()}
            print(f"round {round_number + 1}: {json.dumps(shown)}")
        size_and_rate = f"{arguments.megabytes} MB, {arguments.rate_mbit} Mbit/s each way"
        print(f"\n{size_and_rate}, medians of {len(rows)}")
        for key in rows[0]:
            print(f"  {key:32} {statistics.median(row[key] for row in rows):8.2f}")
        _, peak = resident(broker.pid)
        print(f"  broker memory, MB: {before / 1e6:.1f} before, {peak / 1e6:.1f} at its peak")


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def main() -> None:
    """Make the namespaces, then run this module again inside the hub's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rate-mbit", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--digits", default="shards/built/demo-digits", help="a built digits plan")
    parser.add_argument("--leaf", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.leaf:
        inside(arguments, json.loads(arguments.leaf))
        return
    if os.geteuid() != 0:
        sys.exit("network namespaces need root: sudo .venv/bin/python -m bench.transfer")
    if not Path(arguments.digits).exists():
        sys.exit(f"{arguments.digits}: run `make demo` first, or name a digits plan with --digits")
    with slow_link(arguments.rate_mbit) as (hub, leaf):
        command = [*hub, sys.executable, "-m", "bench.transfer", *sys.argv[1:]]
        subprocess.run([*command, "--leaf", json.dumps(leaf)], check=True)


if __name__ == "__main__":
    main()
