"""Measures what a running plan does: its rate with a full window, its times with one batch alone.

The clocks of devices differ, so a single edge's time holds the difference of two clocks; in the sum
over all edges the differences cancel, and what a device did is taken on its own clock alone.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from broker.split import Elsewhere
from broker.transport import Connect
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from client.sources import fed_input
from contract.errors import DeliveryError, PlanMismatchError
from contract.plan import Plan
from contract.prediction import DeviceMeasurement, EdgeMeasurement, Measurement
from contract.tensor_spec import BATCH

WARM_UP_SHARE = 0.2
MIN_BATCHES = 8

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Phase:
    """Results of one phase after its warm-up; ``sent_us`` and ``got_us`` by the client's clock."""

    results: tuple[BatchResult, ...]
    sent_us: tuple[int, ...]
    got_us: tuple[int, ...]
    images_per_s: float

    @property
    def latency_ms(self) -> float:
        """Median latency of a batch."""
        return statistics.median(result.latency_ms for result in self.results)

    @property
    def seconds(self) -> float:
        """From the first of these results to the last."""
        return max(1e-6, (self.got_us[-1] - self.got_us[0]) / 1e6)


def measure(
    settings: ClientSettings,
    connect: Connect,
    elsewhere: Elsewhere | None,
    plan_id: str,
    seconds: float,
    progress: Progress,
    memory: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Plan, Measurement]:
    """Run the published plan on made-up inputs: one batch at a time, then with a full window.

    Args:
        settings: how to connect, and the window.
        connect: how to reach the broker; ``elsewhere``: the brokers of a plan's edges.
        plan_id: the plan that is expected to run.
        seconds: how long the window is full; a quarter of it goes before, one batch at a time.
        progress: called as time passes.
        memory: resident bytes by device, read at the end: what a :class:`MemoryWatch` has seen.

    Returns:
        The plan as it is published, with its placement, and what was measured.

    Raises:
        PlanMismatchError: another plan is published.
        DeliveryError: a stage has no ready device, or a batch has no result.
        BrokerUnreachableError, NotAuthorisedError: no connection.
    """
    phases = []
    for window, share, step in ((1, 0.25, "one at a time"), (settings.window, 1.0, "full window")):
        with Pipeline(replace(settings, window=window), connect, elsewhere=elsewhere) as pipeline:
            plan = pipeline.open()
            if plan.plan_id != plan_id:
                raise PlanMismatchError(
                    f"cluster {settings.cluster!r}",
                    plan_id,
                    plan.plan_id,
                    "publish the plan with `shardline publish`",
                )
            phases.append(run_for(pipeline, made_up_batch(plan), share * seconds, progress, step))
            used = pipeline.window
    alone, full = phases
    return plan, Measurement(
        time_unix_s=round(time.time(), 1),
        batches=len(full.results),
        window=used,
        images_per_s=round(full.images_per_s, 3),
        latency_ms=round(alone.latency_ms, 3),
        loaded_latency_ms=round(full.latency_ms, 3),
        devices=measure_devices(plan, full, memory),
        edges=measure_edges(plan, alone),
    )


def made_up_batch(plan: Plan) -> Batch:
    """A full batch of seeded noise that fits the plan's input.

    Raises:
        PlanError: the plan is a language model's.
    """
    fed_input(plan.model)
    generator = np.random.default_rng(0)
    (spec,) = plan.stages[0].inputs
    shape = [plan.batch_size if size == BATCH else int(size) for size in spec.shape]
    if spec.dtype == "uint8":
        tensor = generator.integers(0, 256, shape, dtype=np.uint8)
    else:
        tensor = generator.standard_normal(shape).astype(spec.dtype)
    return Batch({spec.name: tensor}, tuple(map(str, range(plan.batch_size))))


def run_for(
    pipeline: Pipeline, batch: Batch, seconds: float, progress: Progress, step: str
) -> Phase:
    """Feed copies of ``batch`` for so long, at least a few; the first fifth does not count.

    Raises:
        DeliveryError: a batch has no result.
    """
    begun = time.perf_counter()
    submitted: list[int] = []

    def work() -> Iterator[Batch]:
        while len(submitted) < MIN_BATCHES or time.perf_counter() - begun < seconds:
            submitted.append(time.time_ns() // 1000)
            yield batch

    results: list[BatchResult] = []
    got: list[int] = []
    for end in pipeline.run(work()):
        if not isinstance(end, BatchResult):
            raise DeliveryError(f"batch {end.batch_id} has no result: {end.reason}: {end.detail}")
        if len(end.hops) != pipeline.plan.num_stages:
            raise DeliveryError(
                f"the result of batch {end.batch_id} tells of {len(end.hops)} stages, the plan has "
                f"{pipeline.plan.num_stages}: is one of its devices of another version?"
            )
        results.append(end)
        got.append(time.time_ns() // 1000)
        progress(step, min(1.0, (time.perf_counter() - begun) / seconds))
    # Only while the window was full: neither its filling nor the emptying at the end.
    first = min(int(len(results) * WARM_UP_SHARE) + pipeline.window, len(results) // 2)
    last = max(first + 2, len(results) - pipeline.window + 1)
    kept, times = results[first:last], got[first:last]
    rate = (len(kept) - 1) * batch.images / max(1e-6, (times[-1] - times[0]) / 1e6)
    begin = min(result.batch_id.seq for result in results)
    sent = tuple(submitted[result.batch_id.seq - begin] for result in kept)
    return Phase(tuple(kept), sent, tuple(times), rate)


def measure_devices(
    plan: Plan, loaded: Phase, memory: Mapping[str, int] = MappingProxyType({})
) -> tuple[DeviceMeasurement, ...]:
    """What every device of the plan did while the window was full.

    A device is busy from a batch's start until its output is handed over.
    """
    found = []
    for spot in plan.placement:
        for replica in spot.replicas:
            mine = [
                result
                for result in loaded.results
                if result.route and result.route[spot.stage_index] == replica.device
            ]
            hops = [result.hops[spot.stage_index] for result in mine]
            compute = [max(0, hop.finished_us - hop.started_us) / 1e3 for hop in hops]
            busy_s = sum(max(0, hop.sent_us - hop.started_us) for hop in hops) / 1e6
            found.append(
                DeviceMeasurement(
                    device=replica.device,
                    stage_index=spot.stage_index,
                    batches=len(mine),
                    compute_ms=round(statistics.median(compute), 3) if compute else None,
                    utilisation=round(min(1.0, busy_s / loaded.seconds), 4),
                    rss_bytes=memory.get(replica.device),
                )
            )
    return tuple(found)


def measure_edges(plan: Plan, alone: Phase) -> tuple[EdgeMeasurement, ...]:
    """Median time from sent to received on every edge; None where the clocks make it negative."""
    times: list[list[float]] = [[] for _ in range(plan.num_stages + 1)]
    for result, sent_us, got_us in zip(alone.results, alone.sent_us, alone.got_us, strict=True):
        leaves = [sent_us, *(hop.sent_us for hop in result.hops)]
        arrives = [*(hop.received_us for hop in result.hops), got_us]
        for edge, (left, arrived) in enumerate(zip(leaves, arrives, strict=True)):
            times[edge].append((arrived - left) / 1e3)
    measured = []
    for edge, values in enumerate(times):
        middle = statistics.median(values)
        measured.append(
            EdgeMeasurement(
                edge=edge,
                bytes_per_batch=plan.edge_bytes(edge, plan.batch_size),
                transfer_ms=round(middle, 3) if middle >= 0 else None,
            )
        )
    return tuple(measured)
