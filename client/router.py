"""Chooses the device of every stage for a batch: least outstanding work, weighted by speed. Pure.

An attempt counts as outstanding on its devices until its own result or refusal arrives, even when
another attempt of the same batch has won meanwhile: the slow device is still working on it.
"""

from collections import Counter, OrderedDict

from contract.activation import BatchId
from contract.plan import Plan

AttemptKey = tuple[BatchId, int]
MAX_ATTEMPTS_REMEMBERED = 4096


class Router:
    """Routes for one plan."""

    def __init__(self, plan: Plan) -> None:
        self._placement = plan.placement
        self._live: set[str] = set()
        self._outstanding: Counter[str] = Counter()
        self._attempts: OrderedDict[AttemptKey, tuple[str, ...]] = OrderedDict()

    def set_live(self, device: str, live: bool) -> None:
        """Note whether a device can take batches. A dead one has nothing outstanding any more."""
        if live:
            self._live.add(device)
            return
        self._live.discard(device)
        self.forget(device)

    def forget(self, device: str) -> None:
        """A device has lost what it had in hand: attempts through it will not end anywhere."""
        for attempt in self.in_hand(device):
            self.end(attempt)

    def missing_stages(self) -> list[int]:
        """Stages that no live device serves."""
        return [
            place.stage_index
            for place in self._placement
            if not any(replica.device in self._live for replica in place.replicas)
        ]

    def choose(self) -> tuple[str, ...] | None:
        """A device for every stage, or None while a stage has none."""
        route = []
        for place in self._placement:
            live = [replica for replica in place.replicas if replica.device in self._live]
            if not live:
                return None
            best = min(live, key=lambda r: ((self._outstanding[r.device] + 1) / r.speed, r.device))
            route.append(best.device)
        return tuple(route)

    def begin(self, attempt: AttemptKey, route: tuple[str, ...]) -> None:
        """An attempt is on its way."""
        self._attempts[attempt] = route
        self._outstanding.update(route)
        if len(self._attempts) > MAX_ATTEMPTS_REMEMBERED:
            self.end(next(iter(self._attempts)))

    def carry_over(self, before: "Router") -> None:
        """Of the same stages, placed on other devices: what was under way goes on."""
        for attempt, route in before._attempts.items():
            self.begin(attempt, route)

    def end(self, attempt: AttemptKey) -> None:
        """Its result or refusal has arrived."""
        for device in self._attempts.pop(attempt, ()):
            if self._outstanding[device] > 0:
                self._outstanding[device] -= 1

    def is_under_way(self, attempt: AttemptKey) -> bool:
        """Whether neither its end nor the loss of a device of its route was noted."""
        return attempt in self._attempts

    def in_hand(self, device: str) -> list[AttemptKey]:
        """The attempts that are under way through a device, oldest first."""
        return [a for a, route in self._attempts.items() if device in route]

    def outstanding(self, device: str) -> int:
        """How many attempts a device has in hand."""
        return self._outstanding[device]
