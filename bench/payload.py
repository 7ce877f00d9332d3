"""What a message costs by its size: our connection and bare paho through Mosquitto.

    python -m bench.payload [--sizes 1,4,16,64,256,1000,4000,8000] [--qos 0,1] [--rounds 3]

A sender (this process), Mosquitto, and a receiver in a process of its own, all on the same two
processors. Latency is one way, from publishing to hearing, one message at a time (both processes
read the same clock). Throughput is with 8 messages on their way; the receiver tells of every
fourth, so that at QoS 0, too, nothing is dropped. Processor seconds are for a GB (10^9 bytes) of
payload: at the broker, and at sender and receiver together. By TLS: version 1.3, mutual, with
certificates as `shardline deploy` makes them. Ours and bare paho take turns in each round. Both
senders are in this process, so bare paho has broker/heap.py there, too; its receiver has not.
"""

import itertools
import json
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.payload_ends import KINDS, ONE, STREAM, address_to_json, make_end
from bench.processes import confine_to_two_cpus, cpu_seconds
from bench.results import Recorder, numbers, parser
from bench.rounds import ratio_spread, spread, take_turns
from bench.tables import Column, Row, ratio, show_bytes, text
from broker.embedded import EmbeddedBroker
from tests.faults.secured import Credentials

IN_FLIGHT = 8
WARM_UP = 10
PATIENCE_S = 30.0


def _sides(title: str, key: str, digits: int) -> Column:
    def show(row: Row) -> str:
        return " / ".join(f"{row[kind][key]:,.{digits}f}" for kind in KINDS)

    return Column(f"{title}: ours / bare", show)


COLUMNS = (
    Column("payload", lambda row: show_bytes(row["size_bytes"]), is_text=True),
    text("QoS", "qos"),
    text("", "security"),
    _sides("p50, ms", "p50_ms", 2),
    _sides("p95, ms", "p95_ms", 2),
    _sides("MB/s", "mb_per_s", 0),
    _sides("broker, CPU s a GB", "broker_cpu_s_per_gb", 2),
    _sides("clients, CPU s a GB", "client_cpu_s_per_gb", 2),
    ratio("latency, ours / bare", "latency"),
    ratio("MB/s, ours / bare", "throughput"),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One side in one round. Processor time of broker and of both clients."""

    latencies_ms: tuple[float, ...]
    mb_per_s: float
    sent_bytes: int
    broker_s: float
    clients_s: float


class Sender:
    """One pair of ends and their broker."""

    def __init__(self, kind: str, broker: EmbeddedBroker, credentials: Credentials | None) -> None:
        self._name = f"receiver-{kind}"
        address, there = broker.address, broker.address
        sender = f"sender-{kind}"
        if credentials is not None:
            address = replace(address, username=sender, tls=credentials.of(sender))
            there = replace(there, username=self._name, tls=credentials.of(self._name))
        self._stack = ExitStack()
        self._answers: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        told = {"kind": kind, "name": self._name, "back": f"{sender}/back"}
        command = [sys.executable, "-m", "bench.payload_ends"]
        process = subprocess.Popen(
            [*command, json.dumps({**told, **address_to_json(there)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._stack.callback(process.wait)
        self._stack.callback(process.stdin.close)
        self._stack.callback(process.stdout.close)
        process.stdout.readline()
        self._end = make_end(kind, address, sender, f"{sender}/back", self._hear)
        self._stack.callback(self._end.close)
        self._broker = {"broker": psutil.Process(broker.pid)}
        self._clients = {"sender": psutil.Process(), "receiver": psutil.Process(process.pid)}
        self._told = self._published = 0

    def _hear(self, payload: bytes) -> None:
        count, at_ns = payload.split()
        self._answers.put((int(count), int(at_ns)))

    def turn(self, size_bytes: int, qos: int, messages: int, seconds: float) -> Turn:
        """Latencies one by one, then a stream."""
        latencies = [self._one(size_bytes, qos) for _ in range(messages)]
        broker, clients = cpu_seconds(self._broker), cpu_seconds(self._clients)
        sent, elapsed_s = self._stream(size_bytes, qos, seconds)
        return Turn(
            tuple(latencies),
            sent / 1e6 / elapsed_s,
            sent,
            sum(cpu_seconds(self._broker).values()) - sum(broker.values()),
            sum(cpu_seconds(self._clients).values()) - sum(clients.values()),
        )

    def _one(self, size_bytes: int, qos: int) -> float:
        payload = ONE + bytes(size_bytes - 1)
        started_ns = time.perf_counter_ns()
        self._publish(payload, qos)
        return (self._take() - started_ns) / 1e6

    def _stream(self, size_bytes: int, qos: int, seconds: float) -> tuple[int, float]:
        payload = STREAM + bytes(size_bytes - 1)
        last = ONE + bytes(size_bytes - 1)
        first = self._published
        started = time.perf_counter()
        end = started + seconds
        while time.perf_counter() < end:
            while self._published - self._told >= IN_FLIGHT:
                self._take()
            self._publish(payload, qos)
        self._publish(last, qos)
        while self._told < self._published:
            self._take()
        return (self._published - first) * size_bytes, time.perf_counter() - started

    def _publish(self, payload: bytes, qos: int) -> None:
        self._end.publish(f"{self._name}/data", payload, qos)
        self._published += 1

    def _take(self) -> int:
        self._told, at_ns = self._answers.get(timeout=PATIENCE_S)
        return at_ns

    def close(self) -> None:
        """End the receiver, disconnect."""
        self._stack.close()


def sum_up(turns: Sequence[Turn]) -> dict[str, float]:
    """Of all rounds of one side. Pure."""
    latencies = [one for turn in turns for one in turn.latencies_ms]
    gigabytes = sum(turn.sent_bytes for turn in turns) / 1e9
    return {
        "p50_ms": round(float(np.percentile(latencies, 50)), 3),
        "p95_ms": round(float(np.percentile(latencies, 95)), 3),
        "mb_per_s": spread([turn.mb_per_s for turn in turns], 2)["median"],
        "broker_cpu_s_per_gb": round(sum(turn.broker_s for turn in turns) / gigabytes, 3),
        "client_cpu_s_per_gb": round(sum(turn.clients_s for turn in turns) / gigabytes, 3),
    }


def row(size_bytes: int, qos: int, secured: bool, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """One row of the table. Pure."""
    medians = {
        kind: [float(np.median(turn.latencies_ms)) for turn in turns[kind]] for kind in KINDS
    }
    rates = {kind: [turn.mb_per_s for turn in turns[kind]] for kind in KINDS}
    return {
        "size_bytes": size_bytes,
        "qos": qos,
        "security": "TLS" if secured else "plain",
        **{kind: sum_up(turns[kind]) for kind in KINDS},
        "latency": ratio_spread(medians["ours"], medians["bare"]),
        "throughput": ratio_spread(rates["ours"], rates["bare"]),
    }


def measure(
    secured: bool,
    sizes: Sequence[int],
    levels: Sequence[int],
    rounds: int,
    seconds: float,
    messages: int,
    recorder: Recorder,
) -> None:
    """All rows of one broker."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="payload-")))
        credentials = Credentials(folder / "credentials", "default") if secured else None
        listener = None if credentials is None else credentials.listener()
        broker = stack.enter_context(EmbeddedBroker(tls=listener))
        senders = {}
        for kind in KINDS:
            senders[kind] = Sender(kind, broker, credentials)
            stack.callback(senders[kind].close)
        for size_bytes, qos in itertools.product(sizes, levels):
            load = (size_bytes, qos)
            for sender in senders.values():
                sender.turn(*load, WARM_UP, 0.0)
            sides = {
                kind: partial(sender.turn, *load, messages, seconds)
                for kind, sender in senders.items()
            }
            recorder.add(row(size_bytes, qos, secured, take_turns(sides, rounds)))


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=3, seconds=0.6)
    sizes = [1, 4, 16, 64, 256, 1000, 4000, 8000]
    options.add_argument("--sizes", type=numbers, default=sizes, help="in KB")
    options.add_argument("--qos", type=numbers, default=[0, 1])
    options.add_argument("--messages", type=int, default=40, help="one by one, in a round")
    options.add_argument("--plain", action="store_true", help="without TLS only")
    chosen = options.parse_args()
    confine_to_two_cpus()
    recorder = Recorder("payload", COLUMNS, chosen.json)
    for secured in (False,) if chosen.plain else (False, True):
        measure(
            secured,
            [size * 1000 for size in chosen.sizes],
            chosen.qos,
            chosen.rounds,
            chosen.seconds,
            chosen.messages,
            recorder,
        )
    recorder.finish()


if __name__ == "__main__":
    main()
