"""Rows 1 to 3, 12 and 13: a stage dies in every state that a batch can be in, or only seems to."""

import signal
import time

from tests.faults import scaled
from tests.faults.feed import Feed
from tests.faults.pipeline_under_test import Setup, Site, lossy
from tests.faults.row import Figures, Row, Trial
from tests.faults.stage_patches import LOSING_POINTS, POINTS

STRIKE_LIMIT_S = 30.0
LATE_S = 4.0
"""Fed so long after a hang: what the replica then says late comes while somebody listens."""
REPLICATED = (("pi-0",), ("pi-1", "pi-1b"), ("pi-2",))
REPLICA = "pi-1b"
REPLICATED_END = (("pi-0",), ("pi-1",), ("pi-2", "pi-2b"))
END_REPLICA = "pi-2b"
"""Of the last stage: what others say late, the next stage refuses as stale, and no client hears."""


def killed_mid_batch(site: Site, trial: Trial) -> Figures:
    """It is held inside the engine's run, and killed there."""
    victim = trial.random.choice(site.devices)

    def inject() -> None:
        site.triggers.set(f"hold.{victim}")
        if site.triggers.wait(f"held.{victim}", STRIKE_LIMIT_S):
            site.stages[victim].kill()
            feed.struck()

    feed = Feed(site, trial, inject, stage_index=site.devices.index(victim))
    return feed.run()


def crashed_at(site: Site, trial: Trial, point: str) -> Figures:
    victim = trial.random.choice(site.devices)

    def inject() -> None:
        file = f"crash.{victim}.{point}"
        site.triggers.set(file)
        if site.triggers.wait(f"{file}.taken", STRIKE_LIMIT_S):
            feed.struck()

    feed = Feed(site, trial, inject, stage_index=site.devices.index(victim))
    return feed.run()


def killed_between_output_and_acknowledgement(site: Site, trial: Trial) -> Figures:
    """At the point where the broker has the output, and the input still."""
    return crashed_at(site, trial, "acknowledging")


def killed_in_every_state(site: Site, trial: Trial) -> Figures:
    """One of ten states by turns; the control takes only those in which there is no output yet."""
    points = LOSING_POINTS if trial.is_control else POINTS
    return crashed_at(site, trial, points[trial.seed % len(points)])


def replica_dies_for_good(site: Site, trial: Trial) -> Figures:
    """SIGKILL, and nobody starts it again before the trial is over."""

    def inject() -> None:
        site.stages[REPLICA].kill()
        feed.struck()

    site.supervisor.left_dead.add(REPLICA)
    feed = Feed(site, trial, inject, stage_index=1)
    try:
        return feed.run()
    finally:
        site.supervisor.left_dead.discard(REPLICA)


def replica_hangs(site: Site, trial: Trial) -> Figures:
    """SIGSTOP for longer than the broker waits, then SIGCONT: its late answers are second ones."""

    def inject() -> None:
        site.stages[END_REPLICA].send(signal.SIGSTOP)
        feed.struck()
        time.sleep(scaled.HANG_S)
        site.stages[END_REPLICA].send(signal.SIGCONT)
        time.sleep(LATE_S)

    feed = Feed(site, trial, inject, stage_index=2)
    try:
        return feed.run()
    finally:
        site.stages[END_REPLICA].send(signal.SIGCONT)


ROWS = (
    Row(
        1,
        "a stage is killed in the middle of a batch",
        "held inside the engine's run, SIGKILL there; a supervisor starts it again",
        "the broker redelivers what was not acknowledged; the client's retry",
        "inputs acknowledged at receipt, no retry: batches are missing",
        lossy,
        killed_mid_batch,
    ),
    Row(
        2,
        "a stage is killed between its output's acknowledgement and its own of the input",
        "the launcher ends the process by SIGKILL at that line",
        "a second result of a batch is dropped by its number",
        "every result that arrives counts: second results",
        lambda is_control: Setup(client_patches=("no_dedup",) if is_control else ()),
        killed_between_output_and_acknowledgement,
        harm="duplicates",
    ),
    Row(
        3,
        "a stage is killed in each of ten states from receipt to acknowledgement",
        "the launcher ends the process by SIGKILL at that line",
        "acknowledgement only after the output's; the client's retry",
        "inputs acknowledged at receipt, no retry: batches are missing",
        lossy,
        killed_in_every_state,
    ),
    Row(
        12,
        "a replica dies for good",
        "SIGKILL, not started again while batches fly",
        "its will; routing to the others; the client's retry",
        "no retry: what it had in hand is missing",
        lambda is_control: lossy(is_control, devices=REPLICATED, slow_ms=4.0),
        replica_dies_for_good,
    ),
    Row(
        13,
        "a replica hangs for 120 s (16 s against a keepalive of 2 s) and goes on",
        "SIGSTOP, SIGCONT",
        "keepalive and will; the client's retry; its late results are dropped",
        "every result that arrives counts: second results",
        lambda is_control: Setup(
            devices=REPLICATED_END,
            slow_ms=25.0,
            client_patches=("no_dedup",) if is_control else (),
        ),
        replica_hangs,
        harm="duplicates",
        seconds=24.0,
    ),
)
