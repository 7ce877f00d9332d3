"""Rows 21, 22 and 32: a stage of another plan, a shard that is damaged, a plan that changes."""

import shutil
import time
from pathlib import Path

from contract import topics
from contract.status import DeviceState, ShardState, parse_status
from planner.publish import Publisher
from shards.manifest import WEIGHTS_FILE
from tests.faults.feed import Feed
from tests.faults.pipeline_under_test import ALL, CLUSTER, READY_LIMIT_S, Setup, Site
from tests.faults.row import Figures, Row, Trial
from tests.stage.harness import Listener

LATE_S = 0.5
REFUSAL_LIMIT_S = 15.0


def other_plan(site: Site) -> None:
    """Publish the plan that is not running."""
    site.publish(site.plans[0] if site.plan is site.plans[1] else site.plans[1])


def plan_before(site: Site, trial: Trial) -> Figures:
    """A new plan is out, and one stage, which says that it serves it, computes with the old one."""

    def inject() -> None:
        feed.struck()
        other_plan(site)

    feed = Feed(site, trial, inject, from_heal=True)
    figures = feed.run()
    figures.require(figures.retried or trial.is_control, "nobody was refused")
    return figures


def rolling_update(site: Site, trial: Trial) -> Figures:
    """Another plan is published while batches fly."""

    def inject() -> None:
        feed.struck()
        other_plan(site)

    feed = Feed(site, trial, inject, from_heal=True)
    return feed.run()


def shard_damaged(site: Site, trial: Trial) -> Figures:
    """A stage is restarted onto weights with flipped bits, or none; then they are handed out."""
    index = trial.random.randrange(len(site.devices))
    victim, stage = site.devices[index], site.plan.stages[index]
    weights = site.shards / site.plan.name / stage.folder / WEIGHTS_FILE
    pristine = site.folder / "pristine"
    if not pristine.exists():
        shutil.copytree(site.shards / site.plan.name, pristine)
    is_missing = trial.seed % 2 == 1 and not trial.is_control
    observer = Listener(site.connect(), "observer", topics.status_filter(CLUSTER))
    shutil.rmtree(site.folder / "cache" / victim, ignore_errors=True)

    def refusal() -> str:
        said = observer.payloads("status", parse_status)
        mine = [status for status in said if status.device == victim]
        last = mine[-1] if mine else None
        if last is None or last.state is not DeviceState.ONLINE:
            return ""
        return last.error or "" if last.shard is ShardState.FAILED else ""

    def inject() -> None:
        damage(weights, is_missing)
        feed.struck()
        site.stages[victim].kill()  # the supervisor starts it again
        deadline = time.monotonic() + (3.0 if trial.is_control else REFUSAL_LIMIT_S)
        while not refusal() and time.monotonic() < deadline:
            time.sleep(0.02)
        word = "no such file" if is_missing else "sha256"
        feed.figures.require(word in refusal(), f"its status says {refusal()[:80]!r}")
        hand_out(site, pristine)

    feed = Feed(site, trial, inject, stage_index=index, from_heal=True)
    try:
        return feed.run()
    finally:
        observer.close()
        shutil.copy2(pristine / stage.folder / WEIGHTS_FILE, weights)


def damage(weights: Path, remove: bool) -> None:
    """Remove the file, or flip exponents near its end."""
    if remove:
        weights.unlink()
        return
    data = bytearray(weights.read_bytes())
    for offset in range(1, 65, 4):
        data[-offset] ^= 0x40
    weights.write_bytes(data)


def hand_out(site: Site, built: Path) -> None:
    """What `shardline publish` does for a device that has lost its shard."""
    with Publisher(site.connect(), CLUSTER, "planner") as publisher:
        publisher.hand_out(site.plan, built, READY_LIMIT_S, lambda _step, _share: None)
        publisher.publish(site.plan)
        publisher.wait_until_ready(site.plan, READY_LIMIT_S, lambda _step, _share: None)


ROWS = (
    Row(
        21,
        "a stage computes by the plan before, and does not know it",
        "the launcher lets a plan reach one stage's memory 0.5 s after its status",
        "the plan's id in every message: refused with a reason, sent again",
        "batches of any plan are computed: wrong answers",
        lambda is_control: Setup(
            plan_seeds=(0, 1),
            stage_patches={
                "pi-1": (f"deaf:{LATE_S}",),
                ALL: ("trust_plans",) if is_control else (),
            },
        ),
        plan_before,
        harm="wrong",
        recovers_from="heal",
    ),
    Row(
        22,
        "a shard's weights are damaged, or missing",
        "bits flipped in the file, or the file removed; the stage killed and started on it",
        "sha256 of every file before it is loaded, a status that says why, the hand-out",
        "no file is hashed: wrong answers",
        lambda is_control: Setup(stage_patches={ALL: ("trust_shards",)} if is_control else {}),
        shard_damaged,
        harm="wrong",
        is_timed=False,
        recovers_from="heal",
    ),
    Row(
        32,
        "the plan changes while batches fly",
        "another plan of the same devices is published",
        "the plan's id in every message; open batches are sent again by the new one",
        "any plan's messages count, nothing is sent again: answers of two half models",
        lambda is_control: Setup(
            plan_seeds=(0, 1),
            stage_patches={ALL: ("trust_plans",)} if is_control else {},
            client_patches=("any_plan",) if is_control else (),
            patience_s=4.0 if is_control else 30.0,
        ),
        rolling_update,
        harm="wrong",
        recovers_from="heal",
    ),
)
