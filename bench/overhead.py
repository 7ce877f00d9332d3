"""What it costs to be watched: throughput with metrics and traces against without, A B B A.

    python -m bench.overhead [--model mobilenet_v2] [--identity 75] [--rounds 12] [--seconds 2]

Two sets of stage processes on the same two processors and broker: one as it is, one that publishes
no metrics (patched in its own process). The client likewise: its metrics and traces as they are,
and none at all. Whichever set does not have its turn is stopped. An observer subscribes to all
metrics, as `shardline top` does. A stage that was stopped for longer than a second publishes as
soon as it is woken: short rounds overstate what metrics cost, by one message a round.

Throughput on two processors is noisy; processor time for a batch, of stages, broker and client
together, is far less so, and is what the overhead is made of. Both are given. ``--identity KB``
adds a pipeline that computes nothing, where messages are all there is: the worst case.
"""

import dataclasses
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench.identity_plan import make_identity_plan
from bench.pinned_pipeline import SHARDLINE, PinnedPipeline, prepare, run_pipeline
from bench.processes import awake, confine_to_two_cpus, cpu_seconds, hold_still, spent_since, wake
from bench.results import PLANS, Recorder, numbers, parser
from bench.rounds import ratio_spread, spread, take_turns
from bench.tables import Column, figure, ratio, text
from broker.embedded import EmbeddedBroker
from broker.transport import Callbacks, ConnectionSettings, Delivery
from client.batch import Batch
from client.settings import ClientSettings
from contract import topics
from contract.plan import Plan, Replica, place

WARM_UP_S = 1.0
ON, OFF = "on", "off"
PROGRAMS = {ON: SHARDLINE, OFF: ("bench.quiet_stage",)}
COLUMNS = (
    text("work", "work"),
    text("batch", "batch"),
    text("traces", "traces"),
    ratio("throughput, on / off", "throughput", 3),
    ratio("processor time, on / off", "processor_time", 3),
    figure("CPU ms a batch, on", "cpu_ms_on", 3),
    figure("off", "cpu_ms_off", 3),
    Column("batches/s, on", lambda row: f"{row['batches_per_s'][ON]['median']:,.1f}"),
    figure("metrics messages heard", "heard", 0),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One set in one round: batches a second, and processor time of a batch in ms."""

    batches_per_s: float
    cpu_ms: float


def client_settings(name: str, cluster: str, traces: bool) -> ClientSettings:
    """With or without traces, where this version has them."""
    extra: dict[str, Any] = {"traces": traces} if has_traces() else {}
    return ClientSettings(name, cluster=cluster, **extra)


def has_traces() -> bool:
    """Whether clients of this version publish traces."""
    return any(field.name == "traces" for field in dataclasses.fields(ClientSettings))


def measure(
    work: str,
    plan: Plan,
    folder: Path,
    batch: Batch,
    cpus: tuple[int, int],
    rounds: int,
    seconds: float,
    engine: str | None = None,
) -> dict[str, Any]:
    """One row."""
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        heard: list[str] = []
        sites, clients = {}, {}
        for name, program in PROGRAMS.items():
            replicas = [[Replica(device=f"{p.replicas[0].device}-{name}")] for p in plan.placement]
            site = PinnedPipeline(
                place(plan, replicas, f"bench-{name}"),
                folder,
                cpus,
                program=program,
                cluster=f"bench-{name}",
                broker=broker,
                engine=engine,
            )
            sites[name] = stack.enter_context(site)
            settings = client_settings(f"client-{name}", f"bench-{name}", traces=name == ON)
            clients[name] = site.client(settings)
            stack.callback(wake, site.pids)  # else they could not end
        # No pause would do: it also tells its metrics at the end of each run.
        meter, teller = clients[OFF]._watch.feed.meter, clients[OFF]._teller

        def forget(now: float, _on_metrics: object) -> None:
            teller._last = now
            meter._recent.clear()

        stack.enter_context(mock.patch.object(teller, "tell", forget))

        def hear(delivery: Delivery) -> None:
            heard.append(delivery.topic)
            delivery.ack()

        observer = sites[ON].connect(ConnectionSettings(name="observer"), Callbacks(hear))
        stack.callback(observer.close, forget_session=True)
        observer.subscribe(topics.metrics_filter(), qos=0)
        for name, site in sites.items():
            run_pipeline(clients[name], batch, WARM_UP_S)
            hold_still(site.pids)

        def turn(name: str) -> Turn:
            site = sites[name]
            with awake(site.pids):
                before = cpu_seconds(site.watched)
                rate, results = run_pipeline(clients[name], batch, seconds)
                spent_s = spent_since(before, site.watched)
            return Turn(rate / batch.images, spent_s / len(results) * 1e3)

        heard.clear()
        turns = take_turns({name: partial(turn, name) for name in PROGRAMS}, rounds)
    rates = {name: [one.batches_per_s for one in found] for name, found in turns.items()}
    cpu_ms = {name: [one.cpu_ms for one in found] for name, found in turns.items()}
    return {
        "work": work,
        "batch": batch.images,
        "traces": "on" if has_traces() else "not in this version",
        "throughput": ratio_spread(rates[ON], rates[OFF], 4),
        "processor_time": ratio_spread(cpu_ms[ON], cpu_ms[OFF], 4),
        "cpu_ms_on": spread(cpu_ms[ON], 4)["median"],
        "cpu_ms_off": spread(cpu_ms[OFF], 4)["median"],
        "batches_per_s": {name: spread(values, 2) for name, values in rates.items()},
        "heard": len(heard),
        "silent_heard": sum(f"bench-{OFF}" in topic for topic in heard),
    }


def identity(folder: Path, kilobytes: int) -> tuple[Plan, Batch]:
    """A plan that computes nothing, and a batch for it."""
    plan = make_identity_plan(folder, kilobytes * 1000)
    width = (1, kilobytes * 250)
    tensor = np.random.default_rng(0).standard_normal(width).astype(np.float32)
    return plan, Batch({"x": tensor}, ("x",))


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=12, seconds=2.0)
    options.add_argument("--model", default="mobilenet_v2", help="empty leaves it out")
    options.add_argument("--batches", type=numbers, default=[1])
    options.add_argument("--identity", type=int, default=75, help="kilobytes; 0 leaves it out")
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    cpus = confine_to_two_cpus()
    recorder = Recorder("overhead", COLUMNS, chosen.json)
    if not has_traces():
        recorder.note("Clients of this version publish no traces: metrics alone were measured.")
    limits = (cpus, chosen.rounds, chosen.seconds)
    for size in chosen.batches if chosen.model else ():
        pair = prepare(chosen.model, size, chosen.plans)
        recorder.add(measure(pair.model, pair.pipeline, pair.folder, pair.images(), *limits))
    if chosen.identity:
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            plan, batch = identity(Path(folder), chosen.identity)
            work = f"nothing, {chosen.identity} KB"
            recorder.add(measure(work, plan, Path(folder), batch, *limits, engine="identity"))
    recorder.finish()


if __name__ == "__main__":
    main()
