"""What has to be done about who is there: nothing, go back, recover, improve. Pure.

The same facts give the same decision, so a service that is started again goes on where it was.
"""

import enum
import hashlib
from dataclasses import dataclass

from contract.plan import Plan
from planner.watch.presence import View

RECOVER_WITHIN = 0.2
"""The same stages on other devices are taken when they reach the best plan's rate but for so much:
batches in flight stay valid, and only the lost shard is handed out."""
KNOWN_WITHIN = 0.05
"""A plan that was built before is taken when it is as good as a new one but for so much."""
WORTH_GAINING = 0.15
"""A plan that runs is replaced only by one that is better by so much."""


class Need(enum.Enum):
    """What the devices ask for."""

    NOTHING = "nothing"
    RETURN = "return"  # the plan that was asked for can run again
    RECOVER = "recover"  # a stage has no device any more
    IMPROVE = "improve"  # all stages are served, but others could serve better


@dataclass(frozen=True)
class Finding:
    """A need, the stages without a device, the devices that may be used, and all of it in words."""

    need: Need
    broken: tuple[int, ...] = ()
    pool: frozenset[str] = frozenset()
    why: str = ""


def devices_of(plan: Plan) -> list[str]:
    """Every device of a placed plan."""
    return [replica.device for spot in plan.placement for replica in spot.replicas]


def is_same(plan: Plan | None, other: Plan | None) -> bool:
    """Whether two plans are the same stages on the same devices, by the same brokers."""
    if plan is None or other is None:
        return plan is other
    return (plan.plan_id, plan.placement, plan.edge_brokers) == (
        other.plan_id,
        other.placement,
        other.edge_brokers,
    )


def broken_stages(plan: Plan, gone: frozenset[str]) -> tuple[int, ...]:
    """The stages all of whose devices are gone."""
    return tuple(
        spot.stage_index
        for spot in plan.placement
        if all(replica.device in gone for replica in spot.replicas)
    )


def look(current: Plan, wanted: Plan | None, view: View) -> Finding:
    """What the devices ask for, now.

    A stage that still has a live device needs no other plan: the client sends its batches there.
    A device that has just come back is left alone until it has settled, unless its stage is its
    already.

    Args:
        current: the published plan.
        wanted: the plan that was asked for, placed; None while it is not known where it belongs.
        view: who is there.
    """
    mine = frozenset(devices_of(current))
    pool = (mine & view.up) | view.usable
    if wanted is not None and not is_same(current, wanted):
        homes = devices_of(wanted)
        if view.usable.issuperset(homes):
            return Finding(Need.RETURN, pool=pool, why="all devices of the wanted plan are there")
    broken = broken_stages(current, view.gone)
    if broken:
        places = current.placement
        stages = "; ".join(
            f"stage {index} has lost " + ", ".join(r.device for r in places[index].replicas)
            for index in broken
        )
        return Finding(Need.RECOVER, broken, pool, stages)
    if mine - view.up - view.gone:
        return Finding(Need.NOTHING, pool=pool)  # a device may be back any moment
    lost = sorted(mine & view.long_gone)
    if lost:
        return Finding(Need.IMPROVE, (), pool, f"{', '.join(lost)} stays away")
    spare = sorted(view.usable - mine)
    if spare and not is_same(current, wanted):
        return Finding(Need.IMPROVE, (), pool, f"{', '.join(spare)} can be used again")
    return Finding(Need.NOTHING, pool=pool)


@dataclass(frozen=True)
class Rates:
    """What could be done and what each would reach, in images a second; None: it cannot be done.

    ``now``: the plan that runs, without the devices that are gone. ``moved``: its stages, those
    without a device on spare ones. ``known``: the best of the plans that were built before.
    ``new``: the best plan there is.
    """

    now: float
    moved: float | None
    known: float | None
    new: float | None


class Way(enum.Enum):
    """Which of :class:`Rates` to go for."""

    STAY = "stay"
    MOVE = "move"
    KNOWN = "known"
    NEW = "new"


def choose_way(need: Need, rates: Rates) -> Way:
    """The least change that is nearly as good as the best.

    For :data:`Need.RECOVER` anything that runs is better than the plan that does not.
    """
    best = max((rate for rate in (rates.moved, rates.known, rates.new) if rate), default=0.0)
    if need is not Need.RECOVER and not 0.0 < rates.now * (1 + WORTH_GAINING) <= best:
        return Way.STAY  # also where it runs although the figures say that it cannot
    if best <= 0.0:
        return Way.STAY
    if rates.moved and rates.moved >= best * (1 - RECOVER_WITHIN):
        return Way.MOVE
    if rates.known and rates.known >= best * (1 - KNOWN_WITHIN):
        return Way.KNOWN
    return Way.NEW


def question_id(current: Plan, finding: Finding) -> str:
    """The same for the same question, so that an answer need not be looked for twice."""
    facts = (current.plan_id, devices_of(current), finding.need.value, sorted(finding.pool))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
