"""Rows 24 and 31: clocks that jump, memory that runs out."""

import contextlib
import os
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults.feed import Feed
from tests.faults.pipeline_under_test import Setup, Site, lossy
from tests.faults.row import Figures, Row, Trial

DAY_S = 86_400
JUMPS = ("+1d", "-1d", "@1970-01-01 00:00:10")
NO_JUMP = "+0"
BATCH_TIMEOUT_S = 60.0
LIMIT_BYTES = 400_000_000
BALLOON_MB = 800
DEATH_LIMIT_S = 20.0
GROUPS = Path("/sys/fs/cgroup")


def faketime_library() -> Path | None:
    """libfaketime for programs with threads (Debian: libfaketime)."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


def _file(site: Site, device: str) -> Path:
    return site.folder / f"clock-{device}"


def clock_environment(site: Site, device: str) -> dict[str, str]:
    """A wall clock of its own for each stage, which the harness sets; monotonic time is real."""
    library = faketime_library()
    assert library is not None
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(_file(site, device)),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def clocks(site: Site, _stack: ExitStack) -> None:
    for device in site.devices:
        _file(site, device).write_text(NO_JUMP)


def clock_jumps(site: Site, trial: Trial) -> Figures:
    """A stage's and the client's clocks jump by a day, or a stage starts in 1970."""
    jump = JUMPS[0] if trial.is_control else JUMPS[trial.seed % len(JUMPS)]
    victim = trial.random.choice(site.devices)

    def inject() -> None:
        _file(site, victim).write_text(jump)
        feed.struck()
        if jump.startswith("@"):
            site.stages[victim].kill()
        else:
            site.triggers.set("clock", f"{DAY_S if jump.startswith('+') else -DAY_S}")
            feed.struck()
        time.sleep(1.0)

    feed = Feed(site, trial, inject, stage_index=site.devices.index(victim), from_heal=True)
    try:
        figures = feed.run()
    finally:
        site.triggers.clear("clock")
        _file(site, victim).write_text(NO_JUMP)
        if jump.startswith("@"):
            site.stages[victim].kill()
    figures.note = jump
    return figures


def memory_group(pid: int) -> tuple[Path, str, str]:
    """A control group's folder, its limit's file and what else is to be set, for version 1 or 2."""
    if (GROUPS / "memory" / "memory.limit_in_bytes").exists():
        return GROUPS / "memory" / f"shardline-faults-{pid}", "memory.limit_in_bytes", ""
    return GROUPS / f"shardline-faults-{pid}", "memory.max", "memory.swap.max"


def narrow(site: Site, stack: ExitStack) -> None:
    """A control group of 400 MB for the stage in the middle."""
    folder, limit, swap = memory_group(os.getpid())
    folder.mkdir(exist_ok=True)
    (folder / limit).write_text(str(LIMIT_BYTES))
    if swap and (folder / swap).exists():
        (folder / swap).write_text("0")

    def remove() -> None:
        for _ in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                return
            time.sleep(0.05)

    stack.callback(remove)


def join_group(_site: Site, device: str) -> list[str]:
    """How the stage in the middle starts inside its group."""
    if device != "pi-1":
        return []
    folder, _, _ = memory_group(os.getpid())
    return ["sh", "-c", f'echo $$ >"{folder}/cgroup.procs" && exec "$@"', "sh"]


def out_of_memory(site: Site, trial: Trial) -> Figures:
    """Something in the stage's container takes all memory; the kernel kills the process."""
    child = site.stages["pi-1"]

    def inject() -> None:
        before = child.pid
        site.triggers.set("balloon.pi-1")
        deadline = time.monotonic() + DEATH_LIMIT_S
        while child.pid == before and child.is_running and time.monotonic() < deadline:
            time.sleep(0.01)
        if child.pid != before or not child.is_running:
            feed.struck()

    feed = Feed(site, trial, inject, stage_index=1)
    figures = feed.run()
    figures.require(
        figures.stage_bytes <= LIMIT_BYTES * 1.05, f"{figures.stage_bytes / 1e6:.0f} MB taken"
    )
    return figures


def lacks_faketime() -> str:
    return "" if faketime_library() else "needs libfaketime (apt install libfaketime)"


def lacks_groups() -> str:
    """Whether memory can be limited here."""
    folder, limit, _ = memory_group(os.getpid())
    try:
        folder.mkdir(exist_ok=True)
        try:
            (folder / limit).write_text(str(LIMIT_BYTES))
        finally:
            folder.rmdir()
    except OSError as error:
        return f"needs root and a memory control group ({error.strerror})"
    return ""


ROWS = (
    Row(
        24,
        "clocks jump by a day, or a stage starts in 1970",
        "libfaketime in one stage; the client's wall clock by the launcher",
        "every timer is monotonic; wall clocks are for traces alone",
        "the client's timers run on the wall clock: batches are given up as too old",
        lambda is_control: Setup(
            furnish=clocks,
            stage_environment=clock_environment,
            client_patches=("jump", *(("wall_clock",) if is_control else ())),
            batch_timeout_s=BATCH_TIMEOUT_S,
            patience_s=4.0 if is_control else 30.0,
        ),
        clock_jumps,
        harm="rule",
        recovers_from="heal",
        lacks=lacks_faketime,
    ),
    Row(
        31,
        "a stage runs out of memory",
        "a control group of 400 MB; something in it takes all that there is; the kernel kills",
        "the broker redelivers what was not acknowledged; the supervisor starts it again",
        "inputs acknowledged at receipt, no retry: batches are missing",
        lambda is_control: lossy(
            is_control,
            furnish=narrow,
            stage_before=join_group,
            stage_patches={"pi-1": (f"balloon:{BALLOON_MB}",)},
        ),
        out_of_memory,
        is_timed=False,
        lacks=lacks_groups,
    ),
)
