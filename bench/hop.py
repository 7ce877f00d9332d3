"""One QoS 1 hop through Shardline beside a bare paho ping-pong over the same broker.

    python -m bench.hop [--sizes 1,75,300,1600,5000] [--rounds 3] [--count 100]

Ours: a batch goes to a one-stage plan with the identity engine in its own process and comes back,
with encoding, checksum, checks, manual acknowledgement and ledger: two hops, so half of the round
trip is one. The other: a process that publishes back what it gets, in a few lines of paho with
TCP_NODELAY set. One message is under way at a time; rounds of the two alternate.
"""

import argparse
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from bench.identity_plan import make_identity_plan
from bench.processes import confine_to_two_cpus
from bench.results import Recorder, numbers, parser
from bench.rounds import ratio_spread, take_turns
from bench.tables import Column, figure, ratio, show_bytes
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from planner.publish import Publisher

COLUMNS = (
    Column("message", lambda row: show_bytes(row["size_bytes"]), is_text=True),
    figure("ours, p50 ms", "ours_p50_ms", 2),
    figure("p95", "ours_p95_ms", 2),
    figure("bare, p50 ms", "bare_p50_ms", 2),
    figure("p95", "bare_p95_ms", 2),
    ratio("ours / bare", "ratio"),
)


class Echo:
    """The bare ping-pong: the other side is this file run with ``--echo PORT``."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        command = [sys.executable, "-m", "bench.hop", "--echo", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        process.stdout.readline()
        self._answers: queue.SimpleQueue[bytes | bytearray] = queue.SimpleQueue()
        self._client = _paho("ping", port)
        self._client.on_message = lambda _c, _d, message: self._answers.put(message.payload)
        stack.callback(self._client.loop_stop)
        _subscribe(self._client, "pong")

    def round_trip_s(self, payload: bytes) -> float:
        """There and back."""
        started = time.perf_counter()
        self._client.publish("ping", payload, qos=1)
        self._answers.get(timeout=30)
        return time.perf_counter() - started


def _paho(name: str, port: int) -> mqtt.Client:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
    client.on_socket_open = _no_delay
    client.connect("127.0.0.1", port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    return client


def _subscribe(client: mqtt.Client, topic: str) -> None:
    """And wait for the broker's word: a message before it is nobody's."""
    subscribed = threading.Event()
    client.on_subscribe = lambda *_arguments: subscribed.set()
    client.subscribe(topic, qos=1)
    if not subscribed.wait(10):
        raise RuntimeError(f"no answer to the subscription to {topic}")


def _no_delay(_client: Any, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def serve_echo(port: int) -> None:
    """Publish back whatever comes."""
    client = _paho("echo", port)

    def answer(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        client.publish("pong", message.payload, qos=1)

    client.on_message = answer
    _subscribe(client, "ping")
    print("ready", flush=True)
    while os.getppid() != 1:
        time.sleep(0.5)


def measure(kilobytes: int, rounds: int, count: int) -> dict[str, Any]:
    """One row; milliseconds a hop."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan = make_identity_plan(folder, kilobytes * 1000)
        broker = stack.enter_context(EmbeddedBroker())
        connect = Connector(broker.address)
        command = [sys.executable, "-m", "shardline", "stage", "--device", "pi-0", "--shards"]
        command += [str(folder), "--broker", str(broker.address), "--engine", "identity"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        with Publisher(connect, "default", "planner") as publisher:
            publisher.publish(plan)
            publisher.wait_until_ready(plan, 30, lambda _step, _fraction: None)
        pipeline = stack.enter_context(Pipeline(ClientSettings("bench", window=1), connect))
        pipeline.open()
        echo = Echo(broker.port, stack)
        tensor = np.random.default_rng(0).standard_normal((1, kilobytes * 250)).astype(np.float32)
        batch, payload = Batch({"x": tensor}, ("x",)), tensor.tobytes()

        def through_shardline() -> list[float]:
            ends = list(pipeline.run([batch] * count))
            assert all(isinstance(end, BatchResult) for end in ends)
            return [end.latency_ms / 2 for end in ends if isinstance(end, BatchResult)]

        def bare() -> list[float]:
            return [echo.round_trip_s(payload) * 500 for _ in range(count)]

        sides = {"ours": through_shardline, "bare": bare}
        take_turns(sides, 1)  # warm-up
        found = take_turns(sides, rounds)
    return row(kilobytes, found)


def row(kilobytes: int, found: dict[str, list[list[float]]]) -> dict[str, Any]:
    """One row of the table, from the ms of each hop by side and round. Pure."""
    made: dict[str, Any] = {"size_bytes": kilobytes * 1000}
    for side, rounds in found.items():
        together = np.concatenate(rounds)
        made[f"{side}_p50_ms"] = round(float(np.percentile(together, 50)), 3)
        made[f"{side}_p95_ms"] = round(float(np.percentile(together, 95)), 3)
    medians = {side: [float(np.median(one)) for one in rounds] for side, rounds in found.items()}
    return {**made, "ratio": ratio_spread(medians["ours"], medians["bare"])}


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--sizes", type=numbers, default=[1, 75, 300, 1600, 5000], help="KB")
    options.add_argument("--count", type=int, default=100)
    options.add_argument("--echo", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.echo is not None:
        serve_echo(chosen.echo)
        return
    confine_to_two_cpus()
    recorder = Recorder("hop", COLUMNS, chosen.json)
    for kilobytes in chosen.sizes:
        recorder.add(measure(kilobytes, chosen.rounds, chosen.count))
    recorder.finish()


if __name__ == "__main__":
    main()
