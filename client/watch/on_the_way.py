"""What bounds a pipeline with no busy stage: too little comes in, or it is on its way. Pure.

The rules of :mod:`client.watch.bound` from the third on.
"""

from collections.abc import Callable, Sequence

from client.watch import advice
from client.watch.finding import BUSY, Bound, BoundKind, held_back
from client.watch.loads import BELIEVED_UP_TO, DeviceLoad, Feeding
from client.watch.view import ClusterView
from contract.plan import Plan

FULL = 0.75
"""A window that is less full than this on average has a client that could feed more."""
BATCHES_EACH = 2
"""In flight for each device, where the plan predicts nothing: one that is computed, one on its
way."""
FAST_ETHERNET_BYTES_PER_S = 12.5e6


def slow_client(fed: Feeding, loads: Sequence[DeviceLoad]) -> Bound | None:
    """The clients, where their windows are not full."""
    if fed.fill >= FULL:
        return None
    busiest = max((load.busy for load in loads), default=0.0)
    feed = "feeds" if len(fed.clients) == 1 else "feed"
    return Bound(
        BoundKind.CLIENT,
        f"{advice.listed(fed.clients)} {feed} less than the pipeline takes: "
        f"{fed.in_flight:.1f} of {fed.window:.0f} batches are in flight, and the busiest device "
        f"works {busiest * 100:.0f} % of the time.",
        advice.for_slow_client(fed),
    )


def broker(
    view: ClusterView, plan: Plan, loads: Sequence[DeviceLoad], fed: Feeding
) -> Bound | None:
    """The broker or its link: it drops messages, or is taken, or keeps most devices waiting."""
    dropped = view.broker.messages_dropped_recently
    if dropped:
        return Bound(
            BoundKind.BROKER,
            f"The broker has just dropped {dropped:,} messages, a receiver's queue being full; "
            "their batches wait for their deadline.",
            ("Use a smaller --window, or raise max_queued_messages in mosquitto.conf.",),
        )
    expected = plan.prediction
    share = (
        sum(edge.broker_ms for edge in expected.edges) * fed.batches_per_s / 1e3 if expected else 0
    )
    if BUSY <= share <= BELIEVED_UP_TO:
        return Bound(
            BoundKind.BROKER,
            f"The broker's link is taken {share * 100:.0f} % of the time, as the plan reckons it. "
            f"{advice.rate(fed, plan)}",
            advice.for_broker(),
        )
    slow = [load for load in loads if load.sending >= BUSY]
    if len(loads) > 1 and 2 * len(slow) > len(loads):
        times = advice.mean_ms([load.publish_ms for load in slow])
        return Bound(
            BoundKind.BROKER,
            f"The broker, or its link: {len(slow)} of {len(loads)} devices wait for it all the "
            f"time, {advice.amount(times or 0)} ms for each output, and compute in only "
            f"{max(load.computing for load in slow) * 100:.0f} % of it.",
            advice.for_broker(),
            devices=tuple(load.device for load in slow),
        )
    return None


def link(loads: Sequence[DeviceLoad]) -> Bound | None:
    """A device's link, by the plan's figures, by its waiting, or by what a usual one carries."""
    measures: tuple[tuple[Callable[[DeviceLoad], float], str], ...] = (
        (lambda load: load.link or 0.0, "is taken {share:.0f} % of the time by the plan's figures"),
        (lambda load: load.sending, "is sending {share:.0f} % of the time"),
        (_of_fast_ethernet, "carries {share:.0f} % of what 100 Mbit/s can"),
    )
    for measure, words in measures:
        load = max(loads, key=measure, default=None)
        if load is None or measure(load) < BUSY:
            continue
        most = max(load.bytes_in_per_s, load.bytes_out_per_s) / 1e6
        return Bound(
            BoundKind.LINK,
            f"The link of {load.device} (stage {load.stage_index}) "
            f"{words.format(share=measure(load) * 100)}: {most:.1f} MB/s in its busier direction. "
            f"Its processor is busy {load.busy * 100:.0f} % of the time.",
            advice.for_link(load),
            load.stage_index,
            (load.device,),
        )
    return None


def _of_fast_ethernet(load: DeviceLoad) -> float:
    """For a device of which the plan says nothing; one with more has a faster link."""
    most = max(load.bytes_in_per_s, load.bytes_out_per_s) / FAST_ETHERNET_BYTES_PER_S
    return most if load.expected is None and most <= 1.0 else 0.0


def window(plan: Plan, fed: Feeding) -> Bound | None:
    """The window, where it is smaller than the plan needs."""
    devices = sum(len(place.replicas) for place in plan.placement)
    needed = plan.prediction.window if plan.prediction else BATCHES_EACH * devices
    if fed.unit == "tokens" or fed.window >= needed:
        return None
    return Bound(
        BoundKind.WINDOW,
        f"The window is too small: {fed.window:.0f} batches in flight for {devices} devices, which "
        f"wait for the next one. {advice.rate(fed, plan)}",
        (f"Let {needed} be in flight: `shardline infer --window {needed}`, or leave it out.",),
    )


def on_the_way(loads: Sequence[DeviceLoad], fed: Feeding) -> Bound:
    """What is left: batches spend their time on the way, and nothing says where."""
    busiest = max(loads, key=lambda load: load.busy, default=None)
    hurt = held_back(loads, None, f"{advice.amount(fed.per_s)} {fed.unit}/s.")
    if hurt is not None:
        return hurt
    idle = "" if busiest is None else f" The busiest device works {busiest.busy * 100:.0f} %."
    spent = ""
    if fed.latency_ms and fed.on_the_way_ms is not None:
        share = f"{fed.on_the_way_ms / fed.latency_ms * 100:.0f} %"
        of_all = f"{advice.amount(fed.on_the_way_ms)} of {advice.amount(fed.latency_ms)} ms"
        spent = f": {of_all} ({share})"
    return Bound(
        BoundKind.ON_THE_WAY,
        f"The window is full and no stage is busy: batches are on their way{spent}.{idle}",
        advice.for_the_way(fed),
    )
