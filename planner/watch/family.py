"""The plans of one model that are built already: the one that was asked for, and those made since.

    PLAN/                      what `shardline plan` wrote
        replans/<key>/<name>/  the same model cut for other devices
        replans/wanted.json    the plan that was asked for, with its devices

A plan that was built once is used again, whichever devices then serve it.
"""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.errors import PlanError, ShardError
from contract.plan import PLAN_FILE, Plan, load_plan, save_plan
from planner.watch.reaction import is_same
from shards.source import shard_source

REPLANS, WANTED_FILE = "replans", "wanted.json"
MOST_KEPT = 4
"""Each is as large as the model."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """A plan with the folder of its shards."""

    plan: Plan
    folder: Path

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Segment boundaries from 0 to the number of segments."""
        return (0, *(stage.end_segment for stage in self.plan.stages))


class Family:
    """The plans of a folder. Reads it each time: what is on the disk counts."""

    def __init__(self, folder: Path, base: Plan) -> None:
        """``base`` is the plan of ``folder``, as it was built."""
        self.base = Built(base, folder)

    def known(self) -> list[Built]:
        """The plan that was asked for, then all that were made since; those that are whole."""
        found = [self.base]
        for file in sorted((self.base.folder / REPLANS).glob(f"*/*/{PLAN_FILE}")):
            try:
                plan = load_plan(file)
                shard_source(plan, file.parent)
            except (PlanError, ShardError) as error:
                log.warning("%s: left alone (%s)", file.parent, error)
                continue
            if self._is_of_us(plan):
                found.append(Built(plan, file.parent))
        return found

    def find(self, plan: Plan) -> Built | None:
        """A published plan with its shards, if they are here."""
        for built in self.known():
            if built.plan.plan_id == plan.plan_id and built.plan.batch_size == plan.batch_size:
                return Built(plan, built.folder)
        return None

    def folder_for(self, boundaries: Sequence[int], devices: Sequence[str]) -> Path:
        """Where a new plan of these cuts belongs; its own name is the last level."""
        facts = repr((self.base.plan.plan_id, tuple(boundaries), sorted(devices)))
        return self.base.folder / REPLANS / hashlib.sha256(facts.encode()).hexdigest()[:16]

    def remember(self, wanted: Plan) -> None:
        """Keep where the plan that was asked for belongs, for a service that is started again."""
        file = self.base.folder / REPLANS / WANTED_FILE
        if is_same(self.remembered(), wanted):
            return
        try:
            file.parent.mkdir(exist_ok=True)
            save_plan(wanted, file)
        except (OSError, PlanError) as error:
            log.warning("%s: not kept (%s)", file, error)

    def remembered(self) -> Plan | None:
        """What :meth:`remember` kept, if it is of this very plan."""
        file = self.base.folder / REPLANS / WANTED_FILE
        if not file.is_file():
            return None
        try:
            plan = load_plan(file)
        except PlanError as error:
            log.warning("%s; ignored", error)
            return None
        return plan if plan.plan_id == self.base.plan.plan_id else None

    def tidy(self, keep: Path) -> None:
        """Throw out the oldest, so that few remain besides the base and ``keep``."""
        others = [built.folder for built in self.known()[1:] if built.folder != keep]
        others.sort(key=lambda folder: folder.stat().st_mtime)
        for folder in others[: max(0, len(others) + 1 - MOST_KEPT)]:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _is_of_us(self, plan: Plan) -> bool:
        base = self.base.plan
        return (plan.model.digest, plan.batch_size, plan.stages[0].inputs) == (
            base.model.digest,
            base.batch_size,
            base.stages[0].inputs,
        )
