"""How a device is, in one word for people: the same in every view. Pure."""

from enum import StrEnum

from client.watch.view import STALE_AFTER_S, ClusterView, DeviceView
from contract.plan import Plan
from contract.status import DeviceState, ShardState


class Condition(StrEnum):
    """How a device is.

    ``offline``: the broker published its will. ``stopped``: it ended in order. ``silent``: it is
    online, and its metrics stay away. ``failed``: its shard cannot be loaded. ``unseen``: the plan
    names it, and the broker has no status of it. ``loading``: it loads its shard of the plan.
    ``ready``: it serves its stage. ``idle``: it is online, and the plan does not need it.
    """

    OFFLINE = "offline"
    STOPPED = "stopped"
    SILENT = "silent"
    FAILED = "failed"
    UNSEEN = "unseen"
    LOADING = "loading"
    READY = "ready"
    IDLE = "idle"


GONE = frozenset(
    {
        Condition.OFFLINE,
        Condition.STOPPED,
        Condition.SILENT,
        Condition.FAILED,
        Condition.UNSEEN,
    }
)
"""Conditions in which a device serves no stage, and somebody should look at it."""


def is_fresh(view: ClusterView, age_s: float | None) -> bool:
    """Whether metrics of this age are of now, or of when the broker was last heard.

    A broker that went away makes no device silent; nor does one that has just come back.
    """
    if age_s is None:
        return False
    if not view.is_connected:
        return age_s - view.connection_age_s <= STALE_AFTER_S
    return age_s <= STALE_AFTER_S or view.connection_age_s <= STALE_AFTER_S


def condition_of(device: DeviceView | None, plan: Plan | None, *, fresh: bool) -> Condition:
    """The condition of a device under the published plan, if there is one.

    Args:
        device: None where only the plan names it.
        plan: the published one.
        fresh: whether its metrics are of now.
    """
    if device is None:
        return Condition.UNSEEN
    status = device.status
    in_plan = plan is not None and plan.stage_of(device.name) is not None
    if status is None:  # its retained status is still to come, or was cleared
        if not fresh:
            return Condition.SILENT
        return Condition.UNSEEN if in_plan else Condition.IDLE
    if status.state is DeviceState.OFFLINE:
        return Condition.OFFLINE
    if status.state is DeviceState.STOPPED:
        return Condition.STOPPED
    if device.metrics_age_s is not None and not fresh:
        return Condition.SILENT
    if status.shard is ShardState.FAILED:
        return Condition.FAILED
    if not in_plan:
        return Condition.IDLE
    serves = status.shard is ShardState.READY and status.plan_id == (plan and plan.plan_id)
    return Condition.READY if serves else Condition.LOADING
