"""Rows 24 and 31: clocks that jump, memory that runs out."""

import contextlib
import os
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults.feed import Feed
from tests.faults.pipeline_under_test import ALL, Setup, Site, lossy
from tests.faults.row import Figures, Row, Trial

DAY_S = 86_400
JUMPS = ("+1 day", "-1 day", "1970")
BATCH_TIMEOUT_S = 60.0
LIMIT_BYTES = 400_000_000
SHARED_BYTES = 100_000_000
"""Libraries that another process has touched first are resident here, and charged there."""
BALLOON_MB = 800
DEATH_LIMIT_S = 20.0
GROUPS = Path("/sys/fs/cgroup")


def clock_jumps(site: Site, trial: Trial) -> Figures:
    """A stage's and the client's clocks jump by a day, or a stage starts in 1970."""
    kind = JUMPS[0] if trial.is_control else JUMPS[trial.seed % len(JUMPS)]
    victim = trial.random.choice(site.devices)

    def inject() -> None:
        offset_s = {"+1 day": DAY_S, "-1 day": -DAY_S, "1970": -time.time()}[kind]
        site.triggers.set(f"clock.{victim}", str(offset_s))
        feed.struck()
        if kind == "1970":
            site.stages[victim].kill()  # the supervisor starts it again
        else:
            site.triggers.set("clock.client", str(offset_s))
            feed.struck()
        time.sleep(1.0)

    feed = Feed(site, trial, inject, stage_index=site.devices.index(victim), from_heal=True)
    figures = feed.run()
    figures.note = kind
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
        figures.stage_bytes <= LIMIT_BYTES + SHARED_BYTES,
        f"{figures.stage_bytes / 1e6:.0f} MB taken",
    )
    return figures


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
        "the launcher moves the wall clock of one stage, and of the client",
        "every timer is monotonic; wall clocks are for traces alone",
        "the client's timers run on the wall clock: batches are given up as too old",
        lambda is_control: Setup(
            stage_patches={ALL: ("jump",)},
            client_patches=("jump", *(("wall_clock",) if is_control else ())),
            batch_timeout_s=BATCH_TIMEOUT_S,
            patience_s=4.0 if is_control else 30.0,
        ),
        clock_jumps,
        harm="rule",
        recovers_from="heal",
        stand_in="time.time() in the process; libfaketime makes Python's sleep fail here",
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
