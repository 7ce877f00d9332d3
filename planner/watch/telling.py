"""What the service tells: notices for whoever started it, events for who watches the cluster."""

from collections.abc import Callable

from broker.reporter import EventReporter
from contract.plan import Plan
from contract.status import EventKind
from planner.watch.notice import Notice, NoticeKind, notice

Tell = Callable[[Notice], None]


class Teller:
    """Words for everything that happens."""

    def __init__(self, tell: Tell, reporter: EventReporter) -> None:
        self._tell, self._reporter = tell, reporter

    def flush(self) -> None:
        """Send events that were held back."""
        self._reporter.flush()

    def lost(self, device: str, why: str) -> None:
        """A device went away."""
        self._reporter.report(EventKind.DEVICE_LOST, f"device {device}: {why}")
        self.say(NoticeKind.DEVICE_LOST, f"device {device} is away ({why})")

    def back(self, device: str, settling_s: float) -> None:
        """A device is there again, and is used when it has stayed for so long."""
        detail = f"device {device} is back"
        if settling_s > 0:
            detail += f"; it counts when it has stayed for {settling_s:.0f} s"
        self._reporter.report(EventKind.DEVICE_BACK, detail)
        self.say(NoticeKind.DEVICE_BACK, detail)

    def published(self, plan: Plan, why: str, *, is_new: bool) -> None:
        """A plan was published: another one than before, or the same again."""
        detail = f"plan {plan.plan_id} ({plan.name}): {why}"
        if is_new:
            self._reporter.report(EventKind.PLAN_CHANGED, detail)
        self.say(NoticeKind.PUBLISHED, detail, plan)

    def ready(self, plan: Plan, took_s: float) -> None:
        """All devices of the published plan have their shards in memory."""
        detail = f"all {plan.num_stages} stages are ready, {took_s:.1f} s after publishing"
        self.say(NoticeKind.READY, detail, plan)

    def impossible(self, why: str) -> None:
        """The devices that are left cannot run the model."""
        self._reporter.report(EventKind.PLAN_IMPOSSIBLE, why)
        self.say(NoticeKind.IMPOSSIBLE, f"{why}; waiting for devices")

    def failed(self, why: str, plan: Plan | None, wait_s: float) -> None:
        """Something did not work, and will be tried again."""
        stays = "" if plan is None else f" (plan {plan.plan_id} stays)"
        self.say(NoticeKind.FAILED, f"{why}; trying again in {wait_s:.0f} s{stays}", plan)

    def aside(self, *, is_down: bool) -> None:
        """Somebody else sees to the cluster's plan."""
        what = "took the plan down" if is_down else "published another plan"
        self.say(
            NoticeKind.STANDING_ASIDE,
            f"somebody {what}: this service leaves the cluster alone until it is started again",
        )

    def say(self, kind: NoticeKind, detail: str, plan: Plan | None = None) -> None:
        """Tell whoever started us."""
        self._tell(notice(kind, detail, plan))
