"""What the promise costs: throughput with the journal, with TLS, and with both, against neither.

    python -m bench.promise [--model mobilenet_v2] [--batch 1] [--rounds 7] [--seconds 4]
    python -m bench.promise --identity 75

Two stages pinned to a CPU each, broker and client unpinned on the same two CPUs, as in
bench.pipeline; one set of stages on a broker without TLS and one on a broker with mutual TLS and
certificates as `shardline deploy` makes them. All four ways run in each round, in another order
each time; each ratio is taken within one round. ``--identity KB``: one stage that computes nothing,
where the promise is all that there is to pay for. The journal keeps references to its inputs, as
`shardline infer` does, and every result.
"""

import argparse
import itertools
import json
import random
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
from bench.pinned_pipeline import prepare
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import BrokerAddress
from client.batch import Batch, BatchResult
from client.journal import Journal
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.plan import Plan
from planner.publish import Publisher
from tests.faults.secured import Credentials

CLUSTER = "default"
WAYS = ("neither", "journal", "TLS", "both")
AIMS = {"journal": 0.9, "both": 0.8}
WARM_UP_S = 1.0
READY_LIMIT_S = 60.0


class Ground:
    """A broker and its stages. The users of one with credentials show certificates."""

    def __init__(self, folder: Path, shards: Path, plan: Plan, secured: bool) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._credentials = Credentials(folder / "credentials", CLUSTER) if secured else None
        listener = self._credentials.listener() if self._credentials else None
        self.broker = self._stack.enter_context(EmbeddedBroker(tls=listener))
        for cpu, place in enumerate(plan.placement):
            self._start(cpu, place.replicas[0].device, shards, identity=plan.name == "identity")
        with Publisher(Connector(self.address("planner")), CLUSTER, "planner") as publisher:
            publisher.publish(plan)
            publisher.wait_until_ready(plan, READY_LIMIT_S, lambda _step, _share: None)

    def address(self, user: str) -> BrokerAddress:
        """Where the broker is, and with what this user finds it."""
        if self._credentials is None:
            return self.broker.address
        return replace(self.broker.address, username=user, tls=self._credentials.of(user))

    def _start(self, cpu: int, device: str, shards: Path, identity: bool) -> None:
        command = ["taskset", "-c", str(cpu), sys.executable, "-m", "shardline", "stage"]
        command += ["--device", device, "--shards", str(shards), "--threads", "1"]
        command += ["--broker", str(self.broker.address)]
        command += ["--cache", str(self._folder / f"cache-{device}")]
        command += ["--engine", "identity"] if identity else []
        files = self.address(device).tls
        if files is not None:
            command += ["--ca-file", str(files.ca_file), "--cert-file", str(files.cert_file)]
            command += ["--key-file", str(files.key_file)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)

    def close(self) -> None:
        """End everything."""
        self._stack.close()


def run(ground: Ground, batch: Batch, seconds: float, journal: Path | None) -> float:
    """Batches per second of one client over ``seconds`` of full window, its last ends included."""
    settings = ClientSettings("client")
    written = None if journal is None else Journal(journal)
    pipeline = Pipeline(settings, Connector(ground.address("client")), journal=written)
    with pipeline:
        pipeline.open()

        def batches(until: float) -> Iterator[Batch]:
            for number in itertools.count():
                if time.perf_counter() >= until:
                    return
                yield replace(batch, positions=(number, number + 1))

        def reread(one: Batch) -> Batch:
            return replace(one, tensors=batch.tensors)

        def ends(seconds: float) -> int:
            source = batches(time.perf_counter() + seconds)
            found = pipeline.run(source, reread=reread)
            return sum(isinstance(end, BatchResult) for end in found)

        ends(WARM_UP_S)
        started = time.perf_counter()
        return ends(seconds) / (time.perf_counter() - started)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Rates of each way in each round, and the ratios to neither."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    order = random.Random(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shardline-promise-")))
        generator = np.random.default_rng(0)
        if arguments.identity:
            plan, shards = make_identity_plan(folder, arguments.identity * 1000), folder
            width = (1, arguments.identity * 250)
            batch = Batch({"x": generator.standard_normal(width).astype(np.float32)}, ("x",))
        else:
            plan = prepare(arguments.model, arguments.batch, arguments.plans).pipeline
            shards = arguments.plans / plan.name
            shape = tuple(int(size) for size in plan.stages[0].inputs[0].shape[1:])
            pixels = generator.integers(0, 256, (arguments.batch, *shape), dtype=np.uint8)
            batch = Batch({"image": pixels}, tuple(map(str, range(arguments.batch))))
        grounds = {}
        for secured in (False, True):
            place = folder / f"ground-{secured}"
            place.mkdir()
            grounds[secured] = Ground(place, shards, plan, secured)
            stack.callback(grounds[secured].close)
        for round_number in range(arguments.rounds):
            for way in order.sample(WAYS, len(WAYS)):
                written = way in ("journal", "both")
                journal = folder / f"journal-{way}-{round_number}" if written else None
                ground = grounds[way in ("TLS", "both")]
                rates[way].append(run(ground, batch, arguments.seconds, journal))
    ratios = {
        way: [rate / bare for rate, bare in zip(rates[way], rates["neither"], strict=True)]
        for way in WAYS[1:]
    }
    what = f"identity, {arguments.identity} KB" if arguments.identity else arguments.model
    return {"what": what, "batch": arguments.batch, "batches_per_s": rates, "ratios": ratios}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--identity", type=int, default=0, help="kilobytes; instead of a model")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--plans", type=Path, default=Path("shards/built/bench"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments)
    rates, ratios = found["batches_per_s"], found["ratios"]
    assert isinstance(rates, dict)
    assert isinstance(ratios, dict)
    print(f"{found['what']}, {arguments.rounds} rounds: batches/s, and against neither (min…max)")
    for way in WAYS:
        shown = f"{way:8} {statistics.median(rates[way]):8.1f}"
        if way in ratios:
            spread = f"{min(ratios[way]):.2f}…{max(ratios[way]):.2f}"
            shown += f"   {statistics.median(ratios[way]):.3f} ({spread})"
            shown += f", aim {AIMS[way]}" if way in AIMS else ""
        print(shown)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
