"""One QoS 1 hop through Shardline beside a bare paho ping-pong over the same broker.

    python -m bench.hop [--sizes 1,75,300,1600,5000] [--rounds 3] [--count 100]

Ours: a batch goes to a one-stage plan with the identity engine in its own process and comes back,
with encoding, checksum, checks, manual acknowledgement and ledger: two hops, so half of the round
trip is one. The other: a process that publishes back what it gets, in a few lines of paho with
TCP_NODELAY set. One message is under way at a time; rounds of the two alternate.
"""

import argparse
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from bench.identity_plan import make_identity_plan
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from planner.publish import Publisher


class Echo:
    """The bare ping-pong: the other side is this file run with ``--echo PORT``."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        command = [sys.executable, "-m", "bench.hop", "--echo", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        assert process.stdout is not None
        process.stdout.readline()
        self._answers: queue.SimpleQueue[bytes | bytearray] = queue.SimpleQueue()
        self._client = _paho("ping", port)
        self._client.on_message = lambda _c, _d, message: self._answers.put(message.payload)
        self._client.subscribe("pong", qos=1)
        stack.callback(self._client.loop_stop)
        time.sleep(0.2)

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


def _no_delay(_client: Any, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def serve_echo(port: int) -> None:
    """Publish back whatever comes."""
    client = _paho("echo", port)

    def answer(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        client.publish("pong", message.payload, qos=1)

    client.on_message = answer
    client.subscribe("ping", qos=1)
    time.sleep(0.2)
    print("ready", flush=True)
    while os.getppid() != 1:
        time.sleep(0.5)


def measure(kilobytes: int, rounds: int, count: int) -> dict[str, float]:
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
        ours: list[float] = []
        bare: list[float] = []
        for round_number in range(rounds + 1):
            for end in pipeline.run([batch] * count):
                assert isinstance(end, BatchResult)
                ours.append(end.latency_ms / 2000)
            bare += [echo.round_trip_s(payload) / 2 for _ in range(count)]
            if round_number == 0:  # warm-up
                ours.clear()
                bare.clear()
    ours_p50, ours_p95 = (float(np.percentile(ours, p)) * 1000 for p in (50, 95))
    bare_p50, bare_p95 = (float(np.percentile(bare, p)) * 1000 for p in (50, 95))
    return {
        "kilobytes": kilobytes,
        "ours_p50_ms": round(ours_p50, 3),
        "ours_p95_ms": round(ours_p95, 3),
        "bare_p50_ms": round(bare_p50, 3),
        "bare_p95_ms": round(bare_p95, 3),
        "ratio_p50": round(ours_p50 / bare_p50, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1,75,300,1600,5000", help="kilobytes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--echo", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo is not None:
        serve_echo(arguments.echo)
        return
    rows = []
    print("one QoS 1 hop, ms      ours p50     p95   bare p50     p95   ours/bare")
    for kilobytes in map(int, arguments.sizes.split(",")):
        row = measure(kilobytes, arguments.rounds, arguments.count)
        rows.append(row)
        print(
            f"{kilobytes:8,} KB        {row['ours_p50_ms']:10.3f} {row['ours_p95_ms']:7.3f} "
            f"{row['bare_p50_ms']:10.3f} {row['bare_p95_ms']:7.3f}   {row['ratio_p50']:9.2f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
