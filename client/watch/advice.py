"""What would help against what bounds the throughput: the sentences of :mod:`client.watch.bound`.

Each names something that can be done, with the command that does it. Two at most: who reads them
wants to act.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from client.watch.loads import DeviceLoad, Feeding
from client.watch.view import ClusterView
from contract.plan import Plan
from contract.status import DeviceState, DeviceStatus, ShardState

UNEVEN = 0.2
"""Stages that differ by more in how busy they are could share the work better."""
OFF_BY = 0.15
"""A measured time that differs by more from the predicted one calls for a new measurement."""
AT_MOST = 2


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def amount(value: float) -> str:
    """Three digits, or the unit: ``4.07``, ``51.3``, ``1,204``."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def mean_ms(times: Sequence[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [time for time in times if time is not None]
    return fmean(known) if known else None


def rate(fed: Feeding, plan: Plan) -> str:
    """``51.3 images/s, predicted 52.0.``"""
    expected = plan.prediction
    beside = "" if expected is None else f", predicted {amount(expected.images_per_s)}"
    return f"{amount(fed.per_s)} {fed.unit}/s{beside}."


def flags(raised: Sequence[str]) -> str:
    """``under voltage and throttled``."""
    return listed([flag.replace("_", " ") for flag in raised])


def for_missing(statuses: Sequence[DeviceStatus | None]) -> tuple[str, ...]:
    """Against a stage that nobody serves, by what its devices say of themselves."""
    found = []
    if any(s is not None and s.shard is ShardState.FAILED and _is_online(s) for s in statuses):
        found.append("See why its shard cannot be loaded, then publish again.")
    elif any(s is not None and s.shard is ShardState.LOADING and _is_online(s) for s in statuses):
        found.append("It is loading its shard: wait.")
    elif any(_is_online(s) for s in statuses):
        found.append("It is online without this shard: `shardline publish PLAN` hands it out.")
    else:
        found.append("Look at its power, its network and its container's log.")
    found.append("`shardline publish PLAN --watch` plans around devices that stay away.")
    return tuple(found)


def _is_online(status: DeviceStatus | None) -> bool:
    return status is not None and status.state is DeviceState.ONLINE


def for_stage(
    view: ClusterView,
    plan: Plan,
    index: int,
    busy: Mapping[int, float],
    loads: Sequence[DeviceLoad],
) -> tuple[str, ...]:
    """Against a stage whose devices are busy all the time."""
    found = []
    away = [name for name in view.stage_devices(index) if name not in {x.device for x in loads}]
    spare = [
        device.name
        for device in view.devices
        if device.is_online and device.is_fresh and plan.stage_of(device.name) is None
    ]
    others = [share for i, share in busy.items() if i != index]
    if away:
        found.append(f"The plan counts on {listed(away)} for this stage, too: not ready.")
    if spare:
        found.append(
            f"Online without a stage: {listed(spare[:3])}. Plan again with it, as a replica of "
            f"stage {index} or with other cuts (`shardline plan MODEL --devices …`)."
        )
    elif others and busy[index] - fmean(others) > UNEVEN:
        found.append(
            f"The others have time left: a replica of stage {index}, or cuts by measured times "
            "(`shardline profile MODEL`, then `shardline plan MODEL --devices` with its file)."
        )
    elif others:
        found.append(
            "The stages are about even, so only more or faster devices help"
            + (
                ": `shardline plan MODEL --devices … --what-if` says what each would bring."
                if plan.decoding is None
                else ", or smaller weights (`shardline plan --quantise int4`)."
            )
        )
    else:
        found.append(
            "One device does it all: another as a replica, or a cut "
            "(`shardline plan MODEL --devices … --what-if`)."
        )
    wrong = _off(loads)
    if wrong is not None:
        found.append(wrong)
    return tuple(found[:AT_MOST])


def _off(loads: Sequence[DeviceLoad]) -> str | None:
    for load in loads:
        if load.expected is None or not load.expected.compute_ms or load.compute_ms is None:
            continue
        if load.compute_ms > (1 + OFF_BY) * load.expected.compute_ms:
            return (
                f"{load.device} takes {amount(load.compute_ms)} ms a batch where the plan expected "
                f"{amount(load.expected.compute_ms)}: see what else runs there, or measure it "
                "(`shardline profile MODEL`) and plan again."
            )
    return None


def for_throttled(raised: Sequence[str]) -> tuple[str, ...]:
    """Against a board that slows itself down."""
    found = []
    if "under_voltage" in raised:
        found.append("Its supply is too weak: use the official one, and a short, thick cable.")
    if set(raised) - {"under_voltage"}:
        found.append("It is too warm: a heat sink, a fan, or room around it.")
    return tuple(found[:AT_MOST])


def for_memory() -> tuple[str, ...]:
    """Against a device that throws out pages which it needs."""
    return (
        "End what else runs there, or start its stage with --no-prepack.",
        "A smaller batch or a further stage needs less on each device: "
        "`shardline plan MODEL --devices …` counts it.",
    )


def for_broker() -> tuple[str, ...]:
    """Against a broker, or its link, that is taken all the time."""
    return (
        "Give an edge a broker of its own (`shardline publish --edge-broker`), or the broker a "
        "faster link or machine.",
        "Send less: `shardline plan MODEL --codec auto`, or fewer stages.",
    )


def for_link(load: DeviceLoad) -> tuple[str, ...]:
    """Against a device's link that is taken all the time."""
    return (
        f"Send less: a cut at a smaller tensor or a codec around stage {load.stage_index} "
        "(`shardline plan MODEL --devices … --codec auto`).",
        f"Give {load.device} a faster link: a cable for Wi-Fi, 1 Gbit/s for 100 Mbit/s.",
    )


def for_slow_client(fed: Feeding) -> tuple[str, ...]:
    """Against a pipeline that waits for its clients."""
    if fed.unit == "tokens":
        return (
            "A text keeps one stage at a time busy: ask for several (`shardline generate "
            "--sequences`, or several requests to `shardline serve`). The plan must have room for "
            "them (`shardline plan --sequences`).",
        )
    return (
        "Reading and decoding the inputs may be slow: try `shardline infer dummy:1000`, which "
        "reads nothing, or feed from a second client.",
    )


def for_the_way(fed: Feeding) -> tuple[str, ...]:
    """Against time that is spent neither computing nor waiting at a stage."""
    if fed.unit == "tokens":
        return ("Every token passes the broker once for each stage: fewer stages, or more texts.",)
    return (
        f"More in flight hides the way: `shardline infer --window {round(2 * fed.window)}`.",
        "`shardline trace` says which part of the way takes how long.",
    )
