"""The plan that is fed and the devices that serve it, as the retained messages tell. Pure."""

import math
from dataclasses import dataclass

from client.generation.progress import PrefillTimes
from client.meter import PipelineMeter
from client.retry import AttemptTimes, RetryBudget
from client.router import Router
from client.settings import MAX_WINDOW
from contract.errors import PlanError
from contract.fleet import FleetView, is_live
from contract.plan import Plan
from contract.status import DeviceStatus

BATCHES_EACH = 2
"""For each device: one that it computes, and one that is on its way to it or from it."""
MOST_TIMES_THE_SLOWEST = 8
"""A replica this many times as fast as the slowest is given no more: the slowest adds little to it,
and each batch in flight adds to the latency."""


def default_window(plan: Plan) -> int:
    """Batches in flight that keep every device of a placed plan busy: as predicted, if it was.

    Of a language model as many sequences as its stages keep caches for.

    The router shares a stage's batches by speed, so a slow replica holds its two only when faster
    ones hold as many times more: with four in flight, one of a quarter of the speed gets none.
    """
    if plan.decoding is not None:
        return min(plan.decoding.sequences, MAX_WINDOW)
    if plan.prediction is not None:
        return min(plan.prediction.window, MAX_WINDOW)
    window = 0.0
    for place in plan.placement:
        speeds = [replica.speed for replica in place.replicas]
        slowest = min(speeds)
        times = (min(speed / slowest, MOST_TIMES_THE_SLOWEST) for speed in speeds)
        window += BATCHES_EACH * sum(times)
    return min(math.ceil(round(window, 6)), MAX_WINDOW)


def goes_on_with(plan: Plan, before: Plan) -> bool:
    """Whether batches that were begun with another plan can be ended with this one.

    A sequence of a language model lasts longer than a batch of images: no other model may go on
    with it, nor one with less room.
    """
    if plan.stages[0].inputs != before.stages[0].inputs:
        return False
    if plan.decoding is None or before.decoding is None:
        return plan.decoding is before.decoding
    return (
        plan.model.digest == before.model.digest
        and plan.batch_size >= before.batch_size
        and plan.decoding.context_tokens >= before.decoding.context_tokens
    )


@dataclass(frozen=True, slots=True)
class Feed:
    """What belongs to the plan that is being fed. ``window``: batches in flight at most.

    Of a language model ``window`` counts sequences, ``attempts`` times the tokens after the first,
    and ``prefills`` what attempts took until the first.
    """

    plan: Plan
    window: int
    router: Router
    meter: PipelineMeter
    attempts: AttemptTimes
    prefills: PrefillTimes
    budget: RetryBudget
    max_message_bytes: int


class FeedWatch:
    """Follows the published plan and the devices' statuses."""

    def __init__(self, client: str, window: int | None) -> None:
        """``window`` None means :func:`default_window` of the plan."""
        self._client, self._window = client, window
        self._fleet = FleetView()
        self._feed: Feed | None = None

    @property
    def is_known(self) -> bool:
        """Whether a plan was seen."""
        return self._feed is not None

    @property
    def feed(self) -> Feed:
        """What is being fed.

        Raises:
            PlanError: no plan was seen yet.
        """
        if self._feed is None:
            raise PlanError("no plan yet; call open() first")
        return self._feed

    def take_status(self, status: DeviceStatus) -> DeviceStatus | None:
        """Take a device's status in; its previous one, if a device that had batches was lost."""
        previous = self._fleet.update(status)
        if self._feed is None:
            return None
        live = is_live(status, self._feed.plan)
        self._feed.router.set_live(status.device, live)
        restarted = previous is not None and previous.boot != status.boot
        if restarted:
            self._feed.router.forget(status.device)
        was_lost = is_live(previous, self._feed.plan) and (restarted or not live)
        return previous if was_lost else None

    def take_plan(self, plan: Plan, now: float) -> bool:
        """Take the published plan in; whether it replaces another one.

        Raises:
            PlanError: it takes another input than the one being fed.
        """
        previous = self._feed
        if previous is not None and not goes_on_with(plan, previous.plan):
            raise PlanError(
                f"the published plan changed to {plan.name!r}, which takes another input: run again"
            )
        if previous is not None and plan == previous.plan:
            return False  # the retained copy, which comes with every reconnect
        router = Router(plan)
        for status in self._fleet.statuses():
            router.set_live(status.device, is_live(status, plan))
        window = self._window or default_window(plan)
        if plan.decoding is not None:
            window = min(window, plan.decoding.sequences)
        replaces = previous is not None and previous.plan.plan_id != plan.plan_id
        if previous is None or replaces:
            meter = PipelineMeter(self._client, plan, window, now)
            attempts = AttemptTimes()
            prefills = PrefillTimes(1 if plan.decoding is None else plan.decoding.chunk_tokens)
            budget = RetryBudget(window, now)
        else:  # the same stages on other devices
            meter, attempts, budget = previous.meter, previous.attempts, previous.budget
            prefills = previous.prefills
            router.carry_over(previous.router)
        largest = plan.max_message_bytes()
        self._feed = Feed(plan, window, router, meter, attempts, prefills, budget, largest)
        return replaces

    def failure(self) -> str | None:
        """Why a device of the plan cannot load its shard, if one cannot."""
        return self._fleet.failure(self.feed.plan)

    def waiting_for(self) -> str:
        """Which stages have no ready device, and what their devices do; empty when none."""
        return "; ".join(
            f"stage {index}: "
            + ", ".join(
                f"{replica.device} is {self._fleet.describe(replica.device)}"
                for replica in self.feed.plan.placement[index].replicas
            )
            for index in self.feed.router.missing_stages()
        )
