"""How long a pipeline is quiet after a death, at full length: nothing of the product is scaled.

    sudo python -m bench.recovery [--rounds 20] [--unplugged 3] [--json FILE]

A client feeds three stages without pause; one process gets SIGKILL, and a supervisor starts it
again at once (the replica: not before the round is over). Three times from the fault: to the next
result of any batch; to the first result that needed what had failed, which is what counts for a
process that comes back; and until every batch that was in flight has its result, which is what
counts for a replica. An unplugged device is one whose connection carries nothing any more.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.feed import Feed
from tests.faults.pipeline_under_test import Setup, Site
from tests.faults.row import Trial
from tests.faults.stage_deaths import REPLICA, REPLICATED

SLOW_MS = 5.0
KEEPALIVE_S = 15.0
AIMS_S = {
    "a replica, SIGKILL": 1.0,
    "a sole stage, SIGKILL, restarted": 3.0,
    "the broker, SIGKILL, restarted": 5.0,
    "a replica, unplugged": 1.5 * KEEPALIVE_S + 2.0,
}
Strike = Callable[[Site], None]


def kill_replica(site: Site) -> None:
    """For good, as far as the round goes."""
    site.supervisor.left_dead.add(REPLICA)
    site.stages[REPLICA].kill()


def kill_sole_stage(site: Site) -> None:
    """The supervisor sees it within 20 ms."""
    site.stages["pi-0"].kill()


def kill_broker(site: Site) -> None:
    """It has nothing on disk."""
    site.broker.kill()
    site.start_broker()


def unplug(site: Site) -> None:
    """Nobody is told."""
    site.proxies[REPLICA].cut()


CASES: dict[str, tuple[Strike, int, bool]] = {
    "a replica, SIGKILL": (kill_replica, 1, True),
    "a sole stage, SIGKILL, restarted": (kill_sole_stage, 0, False),
    "the broker, SIGKILL, restarted": (kill_broker, -1, False),
    "a replica, unplugged": (unplug, 1, True),
}
"""What strikes, whose work shows the recovery, and whether the batches in flight count instead."""


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    strike, stage_index, _ = CASES[name]
    setup = Setup(
        devices=REPLICATED,
        slow_ms=SLOW_MS,
        full_length=True,
        through_proxy=(REPLICA,),
        patience_s=90.0,
    )
    rows: list[Feed] = []
    with (
        tempfile.TemporaryDirectory(prefix="shardline-recovery-") as folder,
        Site(setup, Path(folder)) as site,
    ):
        for seed in range(rounds):
            if seed:
                site.prepare()
            trial = Trial.of(0, seed, is_control=False)

            def inject(feeds: list[Feed] = rows) -> None:
                feeds[-1].struck()
                strike(site)

            rows.append(Feed(site, trial, inject, stage_index=stage_index))
            figures = rows[-1].run()
            if figures.fails:
                raise RuntimeError(f"{name}, round {seed}: {figures}")
            site.supervisor.left_dead.discard(REPLICA)
            site.proxies[REPLICA].mend()
            site.publish()
    return {
        "case": name,
        "aim_s": AIMS_S[name],
        "rounds": rounds,
        "next_result_s": [round(feed.next_result_s or 0.0, 3) for feed in rows],
        "recovery_s": [round(feed.figures.recovery_s or 0.0, 3) for feed in rows],
        "in_flight_s": [round(feed.in_flight_s or 0.0, 3) for feed in rows],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--unplugged", type=int, default=3, help="rounds of half a minute each")
    parser.add_argument("--json", type=Path, help="write every round here")
    arguments = parser.parse_args()
    rows = []
    print("seconds: p50 (worst)               next result   what had failed   all in flight    aim")
    for name, (_, _, judged_by_flight) in CASES.items():
        row = measure(name, arguments.unplugged if "unplugged" in name else arguments.rounds)
        rows.append(row)
        shown = [
            f"{statistics.median(row[key]):6.2f} ({max(row[key]):.2f})"
            for key in ("next_result_s", "recovery_s", "in_flight_s")
        ]
        worst = max(row["in_flight_s" if judged_by_flight else "recovery_s"])
        verdict = "kept" if worst < row["aim_s"] else "NOT kept"
        print(
            f"{name:33} {shown[0]:>13} {shown[1]:>17} {shown[2]:>15} {row['aim_s']:6.1f} {verdict}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
