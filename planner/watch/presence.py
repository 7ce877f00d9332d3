"""Who is there, who is away since when, and who comes and goes. Pure: times are the caller's.

What a broker remembers of a device is hearsay: a device that died together with the broker never
had its will published. So after every connect a device counts only when it has been heard itself;
each publishes metrics once a second.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from contract.status import DeviceState, DeviceStatus, ShardState

FLAPS_WITHIN_S = 600.0
"""Losses that are longer ago do not count against a device."""
LONGEST_SETTLING_S = 600.0
LONG_IN_GRACES = 5
"""An absence of so many graces is a long one: worth a look at what the others could do better."""


@dataclass(slots=True)
class _Device:
    since_s: float  # of the present state
    boot: int | None = None
    is_online: bool = False
    error: str | None = None
    why: str = "not seen"
    is_confirmed: bool = False
    is_wanted: bool = False  # it belongs to a plan, or was there before
    told_lost: bool = False
    losses_s: list[float] = field(default_factory=list)

    @property
    def is_up(self) -> bool:
        return self.is_online and self.error is None


class News(NamedTuple):
    """A device is lost (with the reason), or back (with None)."""

    device: str
    lost: str | None


@dataclass(frozen=True)
class View:
    """The devices at one moment.

    ``up``: heard, and without a failure. ``usable``: up, and long enough since their last loss.
    ``gone``: away for the grace. ``long_gone``: away for much longer. ``reachable``: online,
    whatever their shard is.
    """

    up: frozenset[str]
    usable: frozenset[str]
    gone: frozenset[str]
    long_gone: frozenset[str]
    reachable: frozenset[str]


class Presence:
    """Every device of a cluster, by its statuses and signs of life."""

    def __init__(self, grace_s: float, now_s: float) -> None:
        """``grace_s``: how long a device may be away before that means anything."""
        self._grace_s = grace_s
        self._connected_s = now_s
        self._devices: dict[str, _Device] = {}

    def expect(self, devices: Iterable[str], now_s: float) -> None:
        """These are wanted: one that is never seen is lost, too."""
        for name in devices:
            self._devices.setdefault(name, _Device(now_s)).is_wanted = True

    def connected(self, now_s: float) -> None:
        """The connection to the broker stands (again): what was known before is hearsay now."""
        self._connected_s = now_s
        for device in self._devices.values():
            device.is_confirmed = False

    def take(self, status: DeviceStatus, retained: bool, now_s: float) -> None:
        """A status: its own word, or (``retained``) what the broker remembers."""
        device = self._devices.setdefault(status.device, _Device(now_s))
        online = status.state is DeviceState.ONLINE
        if not online and device.is_online and device.boot != status.boot:
            return  # the late will of an earlier start: the device says at once that it is there
        restarted = online and device.boot is not None and device.boot != status.boot
        was_up, was_online = device.is_up, device.is_online
        device.boot = status.boot
        device.is_online = online
        device.error = (status.error or "failed") if status.shard is ShardState.FAILED else None
        device.is_confirmed = device.is_confirmed or not retained
        device.why = device.error or str(status.state)
        device.is_wanted = device.is_wanted or device.is_up
        if was_up and (restarted or not device.is_up):
            device.losses_s = [*self._recent(device, now_s), now_s]
        # One that comes back and cannot load its shard gets the grace anew: it is handed out again.
        if (was_up, was_online) != (device.is_up, device.is_online) or restarted:
            device.since_s = now_s

    def sign(self, name: str) -> None:
        """A device was heard. Its status tells what it is; this, that it is."""
        device = self._devices.get(name)
        if device is not None and device.is_online:
            device.is_confirmed = True

    def away_s(self, name: str, now_s: float) -> float | None:
        """For how long a device has been away; None if it is there or may be."""
        device = self._devices.get(name)
        if device is None:
            return None
        if not device.is_up:
            return now_s - device.since_s
        return None if device.is_confirmed else now_s - max(self._connected_s, device.since_s)

    def view(self, now_s: float) -> View:
        """All devices now."""
        up = {name for name, its in self._devices.items() if its.is_up and its.is_confirmed}
        away = {name: self.away_s(name, now_s) for name in self._devices}
        return View(
            up=frozenset(up),
            usable=frozenset(name for name in up if self._has_settled(name, now_s)),
            gone=frozenset(n for n, s in away.items() if s is not None and s >= self._grace_s),
            long_gone=frozenset(
                name
                for name, away_s in away.items()
                if away_s is not None and away_s >= LONG_IN_GRACES * self._grace_s
            ),
            reachable=frozenset(name for name, its in self._devices.items() if its.is_online),
        )

    def news(self, now_s: float) -> list[News]:
        """What has changed since this was asked last: wanted devices that are lost, or back.

        A device that says itself that it ends, or whose will does, is lost at once; one that is not
        heard, or cannot load its shard, when its grace is over.
        """
        found = []
        for name, device in sorted(self._devices.items()):
            away_s = self.away_s(name, now_s)
            if device.told_lost:
                if device.is_up and device.is_confirmed:
                    device.told_lost = False
                    found.append(News(name, None))
            elif device.is_wanted and away_s is not None:
                may_pass = device.is_online or device.boot is None
                if not may_pass or away_s >= self._grace_s:
                    device.told_lost = True
                    why = "is not heard" if device.is_up else device.why
                    found.append(News(name, why))
        return found

    def settling_s(self, name: str, now_s: float) -> float:
        """How long a device has to be there before it is used again: longer with every loss."""
        device = self._devices.get(name)
        losses = len(self._recent(device, now_s)) if device is not None else 0
        if losses == 0:
            return 0.0
        return min(self._grace_s * 2.0 ** (losses - 1), LONGEST_SETTLING_S)

    def _has_settled(self, name: str, now_s: float) -> bool:
        return now_s - self._devices[name].since_s >= self.settling_s(name, now_s)

    @staticmethod
    def _recent(device: _Device, now_s: float) -> list[float]:
        return [loss for loss in device.losses_s if now_s - loss < FLAPS_WITHIN_S]
