"""A share of a processor for a group of processes: CFS quotas, by control groups of version 1 or 2.

The period is 10 ms: a quota of 0.1 is 1 ms in every 10, so that a stage of 20 ms takes 200, as it
would on a processor a tenth as fast; with the kernel's usual 100 ms a batch would run at full speed
and wait afterwards. The kernel refuses less than 1 ms, so a smaller share gets a longer period.

It looks only at its ticks, every 4 ms at 250 Hz: a short run may pass whole, and its group waits so
much longer afterwards. Averages are exact; the wall time of a single short run is not.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench.cluster.network import PREFIX, maker_of

PERIOD_US = 10_000
LEAST_QUOTA_US = 1_000
ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Throttling:
    """How often, and for how many seconds, a group had to wait for its next period."""

    periods: int
    throttled: int
    waited_s: float


class ProcessorShare:
    """A control group. Use as a context manager; its processes must have ended by then."""

    def __init__(self, name: str, quota: float) -> None:
        """Make the group without a limit; :meth:`limit` sets it.

        Raises:
            ValueError: a quota that is not above 0 and at most 1.
            OSError: not root, or no processor controller.
        """
        self._period_us, self._quota_us = period_and_quota_us(quota)
        self._parent = controller() / f"{PREFIX}{os.getpid()}-cpu"
        self._parent.mkdir(exist_ok=True)
        self._v2 = is_v2()
        if self._v2:
            for folder in (controller(), self._parent):
                (folder / "cgroup.subtree_control").write_text("+cpu")
        # One group weighs as much as one thread of anybody else's: unweighted, eight devices would
        # get less than their quotas as soon as something else runs on their processor.
        weight, value = ("cpu.weight", 10_000) if self._v2 else ("cpu.shares", 262_144)
        (self._parent / weight).write_text(str(value))
        self.folder = self._parent / name
        self.folder.mkdir()

    def __enter__(self) -> "ProcessorShare":
        return self

    def __exit__(self, *_exception: object) -> None:
        for folder in (self.folder, self._parent):
            _remove(folder)

    def add(self, pid: int) -> None:
        """Put a process, with all its threads, into the group."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def limit(self) -> None:
        """Hold the group to its quota from now on."""
        self._write(str(self._quota_us))

    def release(self) -> None:
        """Let it run freely: to load a shard, say."""
        self._write("max" if self._v2 else "-1")

    def _write(self, quota: str) -> None:
        if self._v2:
            (self.folder / "cpu.max").write_text(f"{quota} {self._period_us}")
            return
        (self.folder / "cpu.cfs_period_us").write_text(str(self._period_us))
        (self.folder / "cpu.cfs_quota_us").write_text(quota)

    def throttling(self) -> Throttling:
        """Totals since the group was made."""
        lines = (self.folder / "cpu.stat").read_text().splitlines()
        stat = {key: int(value) for key, value in (line.split() for line in lines)}
        waited_s = stat.get("throttled_usec", 0) / 1e6 + stat.get("throttled_time", 0) / 1e9
        return Throttling(stat["nr_periods"], stat["nr_throttled"], waited_s)


def period_and_quota_us(quota: float) -> tuple[int, int]:
    """How often a share begins anew and how much of that it is, in microseconds.

    Raises:
        ValueError: not above 0 and at most 1.
    """
    if not 0 < quota <= 1:
        raise ValueError(f"quota {quota:g}: expected a share of one processor, above 0, at most 1")
    quota_us = max(LEAST_QUOTA_US, round(quota * PERIOD_US))
    return (round(quota_us / quota) if quota_us == LEAST_QUOTA_US else PERIOD_US), quota_us


def is_v2() -> bool:
    """Whether the processor controller belongs to the unified hierarchy."""
    controllers = ROOT / "cgroup.controllers"
    return controllers.is_file() and "cpu" in controllers.read_text().split()


def controller() -> Path:
    """The root of the hierarchy that has the processor controller.

    Raises:
        OSError: there is none.
    """
    if is_v2():
        return ROOT
    if (ROOT / "cpu" / "cpu.cfs_quota_us").exists() or (ROOT / "cpu" / "cgroup.procs").exists():
        return ROOT / "cpu"
    raise OSError(f"{ROOT}: no cpu controller, neither of control groups 1 nor 2")


def remove_left_behind() -> list[str]:
    """Remove the groups of rigs whose process has ended."""
    removed = []
    for folder in sorted(controller().glob(f"{PREFIX}*-cpu")):
        maker = maker_of(folder.name)
        if maker is not None and not Path(f"/proc/{maker}").exists():
            for child in sorted(folder.glob("*/")):
                _remove(child)
            _remove(folder)
            removed.append(folder.name)
    return removed


def _remove(folder: Path) -> None:
    for _ in range(20):  # the last process may still be on its way out
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            with contextlib.suppress(OSError):
                if any(child.is_dir() for child in folder.iterdir()):
                    return  # others' groups are still in it
            time.sleep(0.05)
        else:
            return
