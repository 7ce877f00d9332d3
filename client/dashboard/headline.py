"""How the cluster is as a whole, in a sentence. Pure."""

from collections.abc import Mapping, Sequence

from client.dashboard.messages import DeviceMessage, Headline, Level, StageMessage
from client.watch.condition import GONE, Condition, is_fresh
from client.watch.view import ClusterView
from contract.metrics import EARLIER, Ledger

MAX_NAMED = 3
"""Devices that a sentence names; the others it counts."""


def headline(
    view: ClusterView,
    stages: Sequence[StageMessage],
    devices: Mapping[str, DeviceMessage],
    ledger: Ledger | None,
) -> Headline:
    """The one sentence that matters most; what is wrong goes before what is well."""
    if not view.is_connected:
        return _say(
            Level.BAD,
            f"No connection to the broker for {view.connection_age_s:.0f} s: "
            "shown is what was last heard",
        )
    if ledger is not None and ledger.lost:
        return _say(Level.BAD, f"{_count(ledger.lost, 'batch', 'batches')} lost")
    if view.plan is None:
        waiting = f"{_count(len(devices), 'device')} known" if devices else "no device is known"
        return _say(Level.IDLE, f"No plan is published in cluster {view.cluster}; {waiting}")
    for stage in stages:
        if not stage.ready_devices:
            return _stage_without_device(stage, devices)
    gone = [d for d in devices.values() if d.stage_index is not None and d.condition in GONE]
    if gone:
        return _say(Level.WARNING, f"{_conditions(gone)}; every stage has another device")
    throttled = [name for name, device in devices.items() if is_throttled(device)]
    if throttled:
        return _say(Level.WARNING, f"{_names(throttled)}: slowed down by heat or power")
    stages_ready = "The stage is ready" if len(stages) == 1 else f"All {len(stages)} stages ready"
    if not any(is_fresh(view, pipeline.metrics_age_s) for pipeline in view.pipelines):
        return _say(Level.IDLE, f"{stages_ready}; nobody feeds the pipeline")
    if ledger is not None and ledger.dead:
        dead = _count(ledger.dead, "batch was", "batches were")
        return _say(Level.WARNING, f"{stages_ready}; {dead} given up, nothing lost")
    return _say(Level.GOOD, f"{stages_ready}, nothing lost")


def is_throttled(device: DeviceMessage) -> bool:
    """Whether the board says that it is slowed down now, not only earlier."""
    flags = device.metrics.throttled if device.metrics and device.is_fresh else None
    return any(not flag.endswith(EARLIER) for flag in flags or ())


def _stage_without_device(stage: StageMessage, devices: Mapping[str, DeviceMessage]) -> Headline:
    its = [devices[name] for name in stage.devices if name in devices]
    if its and all(device.condition is Condition.LOADING for device in its):
        return _say(Level.IDLE, f"Stage {stage.stage_index} is loading its shard")
    why = f": {_conditions(its)}" if its else ": the plan is not placed on any"
    return _say(Level.BAD, f"Stage {stage.stage_index} has no device that is ready{why}")


def _conditions(devices: Sequence[DeviceMessage]) -> str:
    told = [f"{d.device} is {d.condition}" for d in devices[:MAX_NAMED]]
    return ", ".join(told) + _others(len(devices))


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + _others(len(names))


def _others(count: int) -> str:
    return f" and {count - MAX_NAMED} more" if count > MAX_NAMED else ""


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _say(level: Level, text: str) -> Headline:
    return Headline(level=level, text=text)
