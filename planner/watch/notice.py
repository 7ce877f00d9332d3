"""What the service tells a person or a script: one line for everything that happens."""

import time
from enum import StrEnum

from pydantic import Field

from contract.frozen import FrozenModel
from contract.plan import Plan


class NoticeKind(StrEnum):
    """What a notice is about."""

    WAITING = "waiting"
    PUBLISHED = "published"
    READY = "ready"
    DEVICE_LOST = "device_lost"
    DEVICE_BACK = "device_back"
    PLANNING = "planning"
    KEPT = "kept"
    IMPOSSIBLE = "impossible"
    FAILED = "failed"
    STANDING_ASIDE = "standing_aside"
    STOPPED = "stopped"


class Notice(FrozenModel):
    """One line. ``stages`` are the devices of each stage of the plan that the notice is about."""

    kind: NoticeKind = Field(strict=False)
    time_unix_s: float
    detail: str
    plan_id: str | None = None
    stages: tuple[tuple[str, ...], ...] = ()


def notice(kind: NoticeKind, detail: str, plan: Plan | None = None) -> Notice:
    """A notice of now."""
    return Notice(
        kind=kind,
        time_unix_s=round(time.time(), 3),
        detail=detail,
        plan_id=None if plan is None else plan.plan_id,
        stages=()
        if plan is None
        else tuple(tuple(r.device for r in spot.replicas) for spot in plan.placement),
    )
