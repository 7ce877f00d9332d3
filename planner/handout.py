"""Which devices have their shard, which are fetching it, which have to be asked (again). Pure."""

import secrets
from collections.abc import Collection, Mapping

from contract.command import Fetch, FetchProgress
from contract.plan import Plan

ASK_AGAIN_S = 5.0
"""A device tells twice a second how far it is: silent for so long, it may have lost our request."""
ASK_FIRST_S = 1.0
"""One that was never heard of may only just be starting."""


class HandOut:
    """One hand-out of a placed plan. Times in seconds of any monotonic clock."""

    def __init__(self, plan: Plan, now_s: float, devices: Collection[str] | None = None) -> None:
        """``devices``: only these of the plan's; None for all."""
        self._fetches = {
            replica.device: Fetch(
                request_id=secrets.token_hex(8),
                plan_id=plan.plan_id,
                stage_index=spot.stage_index,
                files=tuple(
                    dict.fromkeys(
                        (plan.stages[spot.stage_index].graph, plan.stages[spot.stage_index].weights)
                    )
                ),
            )
            for spot in plan.placement
            for replica in spot.replicas
            if devices is None or replica.device in devices
        }
        self._heard_s = dict.fromkeys(self._fetches, now_s)
        self._moved_s = dict.fromkeys(self._fetches, now_s)
        self._asked_s: dict[str, float] = {}
        self._progress: dict[str, FetchProgress] = {}

    @property
    def fetches(self) -> Mapping[str, Fetch]:
        """What each device is asked."""
        return self._fetches

    def due(self, now_s: float) -> list[str]:
        """The devices to ask now: those never asked, and those silent since."""
        due = [device for device in self.unfinished() if self._is_due(device, now_s)]
        self._asked_s.update(dict.fromkeys(due, now_s))
        return due

    def take(self, device: str | None, progress: FetchProgress, now_s: float) -> None:
        """A device tells how far it is; answers to anything else are left alone.

        So is one that has more bytes than there are: it could go on for ever.
        """
        fetch = self._fetches.get(device or "")
        if device is None or fetch is None or fetch.request_id != progress.request_id:
            return
        if progress.done_bytes <= sum(file.size_bytes for file in fetch.files):
            before = self._progress.get(device)
            self._progress[device] = progress
            self._heard_s[device] = now_s
            if before is None or progress.done_bytes > before.done_bytes:
                self._moved_s[device] = now_s

    def unfinished(self) -> list[str]:
        """The devices that do not have their shard yet."""
        return [
            device
            for device in self._fetches
            if device not in self._progress or not self._progress[device].finished
        ]

    def failure(self) -> str | None:
        """Why some device gave up, if one did."""
        for device, progress in self._progress.items():
            if progress.error is not None:
                return f"device {device}: {progress.error}"
        return None

    def stuck(self, now_s: float, patience_s: float) -> list[str]:
        """The unfinished devices that got nowhere for so long, whether they say so or nothing."""
        return [d for d in self.unfinished() if now_s - self._moved_s[d] > patience_s]

    def share(self, device: str) -> float:
        """How much of its shard a device has, 0.0 to 1.0."""
        progress = self._progress.get(device)
        if progress is None:
            return 0.0
        return (
            1.0
            if progress.finished
            else min(1.0, progress.done_bytes / max(1, progress.total_bytes))
        )

    def _is_due(self, device: str, now_s: float) -> bool:
        asked_s = self._asked_s.get(device)
        if asked_s is None:
            return True
        if device not in self._progress:
            return now_s - asked_s >= ASK_FIRST_S
        return now_s - max(asked_s, self._heard_s[device]) >= ASK_AGAIN_S
