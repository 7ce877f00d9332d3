"""What bounds the throughput of the running pipeline now, and what would help. Pure.

The rules, in order; the first that holds is the answer:

1. There is nothing to bound: no connection, no plan, a stage without a ready device, nobody feeds.
2. A stage's devices are busy all the time: it sets the rate. If one of them is throttled or short
   of memory, that is the reason.
3. The clients' windows are not full: they feed less than the pipeline could take.
4. The windows are full and no stage is busy all the time: the broker or the link of a device is
   taken, or batches queue at a stage all the same, or too few are in flight.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from client.watch import advice, on_the_way
from client.watch.finding import BUSY, Bound, held_back
from client.watch.finding import BoundKind as BoundKind
from client.watch.loads import DeviceLoad, Feeding, device_loads, feeding
from client.watch.view import ClusterView
from contract.fleet import FleetView, is_live
from contract.plan import Plan


def explain(view: ClusterView) -> list[str]:
    """What bounds the throughput, then what would help: a sentence each."""
    found = find_bound(view)
    return [found.what, *found.helps]


def find_bound(view: ClusterView) -> Bound:
    """What bounds the throughput now."""
    if not view.is_connected:
        return Bound(
            BoundKind.NO_CONNECTION,
            f"No connection to the broker for {view.connection_age_s:.0f} s: what is shown is what "
            "was last heard.",
            ("Look whether the broker runs and whether the network reaches it.",),
        )
    if view.plan is None or not view.plan.placement:
        return Bound(
            BoundKind.NO_PLAN,
            f"No pipeline is running: no plan is published in cluster {view.cluster}.",
            ("Publish one: `shardline publish PLAN`.",),
        )
    missing = _missing_stage(view, view.plan)
    if missing is not None:
        return missing
    fed = feeding(view)
    loads = device_loads(view)
    if fed is None:
        return _not_fed(view, view.plan)
    return (
        _busy_stage(view, view.plan, loads, fed)
        or on_the_way.slow_client(fed, loads)
        or on_the_way.broker(view, view.plan, loads, fed)
        or on_the_way.link(loads)
        or _queueing_stage(view, view.plan, loads, fed)
        or on_the_way.window(view.plan, fed)
        or on_the_way.on_the_way(loads, fed)
    )


def _missing_stage(view: ClusterView, plan: Plan) -> Bound | None:
    fleet = FleetView()
    for device in view.devices:
        if device.status is not None:
            fleet.update(device.status)
    for place in plan.placement:
        names = [replica.device for replica in place.replicas]
        if any(is_live(fleet.get(name), plan) for name in names):
            continue
        states = ", ".join(f"{name} is {fleet.describe(name)}" for name in names)
        return Bound(
            BoundKind.STAGE_MISSING,
            f"Stage {place.stage_index} has no ready device: {states}. Nothing can pass.",
            advice.for_missing([fleet.get(name) for name in names]),
            place.stage_index,
            tuple(names),
        )
    return None


def _not_fed(view: ClusterView, plan: Plan) -> Bound:
    others = [p.client for p in view.pipelines if p.is_fresh]
    if others:
        return Bound(
            BoundKind.NOT_FED,
            f"Nobody feeds plan {plan.name}; an earlier one is fed by {advice.listed(others)}.",
            ("It changes over by itself; if it does not within a minute, start it again.",),
        )
    return Bound(
        BoundKind.NOT_FED,
        f"Nobody feeds the pipeline: all {plan.num_stages} stages are ready and wait.",
        ("Feed it: `shardline infer SOURCE`, or `shardline verify PLAN` to measure it.",),
    )


def _by_stage(plan: Plan, loads: Sequence[DeviceLoad]) -> dict[int, list[DeviceLoad]]:
    """The devices that are heard, of each stage that has any."""
    found = {
        index: [load for load in loads if load.stage_index == index]
        for index in range(plan.num_stages)
    }
    return {index: here for index, here in found.items() if here}


def _busy_stage(
    view: ClusterView, plan: Plan, loads: Sequence[DeviceLoad], fed: Feeding
) -> Bound | None:
    by_stage = _by_stage(plan, loads)
    busy = {index: fmean(load.busy for load in here) for index, here in by_stage.items()}
    if not busy or max(busy.values()) < BUSY:
        return None
    index = max(busy, key=lambda i: busy[i])
    others = [f"{share * 100:.0f} %" for i, share in busy.items() if i != index]
    beside = f", the other stages {advice.listed(others)}" if others else ""
    computing = fmean(load.computing for load in by_stage[index])
    if computing >= BUSY:
        times = advice.mean_ms([load.compute_ms for load in by_stage[index]])
        each = "" if times is None else f" ({advice.amount(times)} ms a batch)"
        what = f"computes {computing * 100:.0f} % of the time{each}"
    else:
        what = (
            f"keeps its processor busy {busy[index] * 100:.0f} % of the time and computes in "
            f"{computing * 100:.0f} %: the rest is receiving, checking and sending"
        )
    return _stage(view, plan, index, by_stage, f"{what}{beside}", fed)


def _queueing_stage(
    view: ClusterView, plan: Plan, loads: Sequence[DeviceLoad], fed: Feeding
) -> Bound | None:
    """As where several stages share a machine: each is kept from computing by the others."""
    by_stage, queue = _by_stage(plan, loads), fed.queue
    if queue is None or queue.stage_index not in by_stage:
        return None
    computing = fmean(load.computing for load in by_stage[queue.stage_index])
    what = (
        f"is where batches wait: {advice.amount(queue.wait_ms)} ms each, for "
        f"{advice.amount(queue.compute_ms)} ms of computing, though it computes only "
        f"{computing * 100:.0f} % of the time"
    )
    return _stage(view, plan, queue.stage_index, by_stage, what, fed)


def _stage(
    view: ClusterView,
    plan: Plan,
    index: int,
    by_stage: Mapping[int, Sequence[DeviceLoad]],
    what: str,
    fed: Feeding,
) -> Bound:
    here, rate = by_stage[index], advice.rate(fed, plan)
    busy = {i: fmean(load.busy for load in of_stage) for i, of_stage in by_stage.items()}
    names = tuple(load.device for load in here)
    return held_back(here, index, rate) or Bound(
        BoundKind.STAGE,
        f"Stage {index} on {advice.listed(names)} {what}. {rate}",
        advice.for_stage(view, plan, index, busy, here),
        index,
        names,
    )
