"""Ten minutes of random faults at full length, and what is left of the promise and of the memory.

    python -m bench.soak [--minutes 10] [--seed 0] [--json FILE] [--picture FILE]

Three stages, the second with a replica, on loopback; a client feeds without pause. Faults strike at
random moments: stages and the broker killed, the broker restarted, connections reset, connections
that carry one way only. Two come once each at full length: a cable out for 60 s, and a replica that
hangs for 120 s. Nothing of the product is scaled. Ends with 1 if a batch is missing, wrong, or has
two results.
"""

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from client.batch import Batch, BatchResult
from contract.errors import ShardlineError
from tests.faults.known_answers import is_right, numbered_batches
from tests.faults.pipeline_under_test import Setup, Site
from tests.faults.stage_deaths import REPLICA, REPLICATED

CUT_S, HANG_S = 60.0, 120.0
CUT_AT, HANG_AT = 0.12, 0.45
"""When the two long ones begin, as shares of the whole."""
PAUSE_S = (5.0, 15.0)
QUIET_AT_THE_END_S = 20.0
SLOW_MS = 20.0
WARM_S = 30.0
"""Of each start of a process, not counted for the slope: loading is not leaking."""
NAMES: tuple[str, ...] = ("client", "pi-0", "pi-1", REPLICA, "pi-2")


@dataclass
class Log:
    """What happened, with seconds since the start."""

    began: float = field(default_factory=time.monotonic)
    faults: list[tuple[float, str]] = field(default_factory=list)
    memory: list[tuple[float, str, int, float]] = field(default_factory=list)
    results: list[tuple[float, int]] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def note(self, fault: str) -> None:
        """One fault."""
        self.faults.append((round(self.now(), 1), fault))
        print(f"{self.now():6.1f} s  {fault}", flush=True)


class Troublemaker:
    """Injects faults from a thread of its own until it is told to stop."""

    def __init__(self, site: Site, log: Log, seconds: float, seed: int) -> None:
        self._site, self._log, self._seconds = site, log, seconds
        self._random = random.Random(seed)
        self._kinds = {
            "stage killed": self._kill_stage,
            "broker killed": self._kill_broker,
            "broker restarted": self._restart_broker,
            "connections reset": self._reset,
            "one way only": self._one_way,
        }
        self._spared: set[str] = set()  # in trouble already
        self._threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self._strike_at_random, self._cut, self._hang)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all faults are over."""
        for thread in self._threads:
            thread.join()

    def _strike_at_random(self) -> None:
        while True:
            time.sleep(self._random.uniform(*PAUSE_S))
            if self._log.now() > self._seconds - QUIET_AT_THE_END_S:
                return
            kind = self._random.choice(sorted(self._kinds))
            self._kinds[kind]()

    def _victim(self, *more: str) -> str:
        names: list[str] = [n for n in (*NAMES[1:], *more) if n not in self._spared]
        return self._random.choice(names)

    def _kill_stage(self) -> None:
        victim = self._victim()
        self._log.note(f"{victim}: SIGKILL")
        self._site.stages[victim].kill()

    def _kill_broker(self) -> None:
        self._log.note("broker: SIGKILL")
        self._site.broker.kill()
        self._back()

    def _restart_broker(self) -> None:
        self._log.note("broker: SIGTERM")
        self._site.broker.end()
        self._back()

    def _back(self) -> None:
        """It has nothing on disk: the planner publishes the plan again."""
        time.sleep(self._random.uniform(0.0, 3.0))
        self._site.start_broker()
        with suppress(ShardlineError):  # the devices that are in trouble are not ready, of course
            self._site.publish()

    def _reset(self) -> None:
        victim = self._victim("client")
        self._log.note(f"{victim}: connection reset")
        self._site.proxies[victim].reset()

    def _one_way(self) -> None:
        victim = self._victim("client")
        self._log.note(f"{victim}: connection carries one way only")
        self._site.proxies[victim].swallow(upward=self._random.random() < 0.5)

    def _cut(self) -> None:
        time.sleep(CUT_AT * self._seconds)
        self._spared.add("pi-0")
        self._log.note(f"pi-0: cable out for {CUT_S:g} s")
        self._site.proxies["pi-0"].cut()
        time.sleep(CUT_S)
        self._site.proxies["pi-0"].mend()
        self._log.note("pi-0: cable in again")
        self._spared.discard("pi-0")

    def _hang(self) -> None:
        time.sleep(HANG_AT * self._seconds)
        self._spared.add(REPLICA)
        self._log.note(f"{REPLICA}: SIGSTOP for {HANG_S:g} s")
        self._site.stages[REPLICA].send(signal.SIGSTOP)
        time.sleep(HANG_S)
        self._site.stages[REPLICA].send(signal.SIGCONT)
        self._log.note(f"{REPLICA}: SIGCONT")
        self._spared.discard(REPLICA)


def watch_memory(site: Site, log: Log, over: threading.Event) -> None:
    """Resident bytes of every process and its age, once a second."""
    while not over.wait(1.0):
        pids = {name: child.process for name, child in site.stages.items()}
        pids["broker"] = site.broker.process
        for name, process in pids.items():
            with suppress(psutil.Error):
                seen = psutil.Process(process.pid)
                age_s = time.time() - seen.create_time()
                log.memory.append((log.now(), name, seen.memory_info().rss, age_s))
        own = psutil.Process()
        age_s = time.time() - own.create_time()
        log.memory.append((log.now(), "client", own.memory_info().rss, age_s))


def slope_mb_per_hour(samples: list[tuple[float, int]]) -> float | None:
    """Least squares over (seconds, bytes); None for too few."""
    if len(samples) < 60:
        return None
    times, sizes = zip(*samples, strict=True)
    return statistics.linear_regression(times, sizes).slope * 3600 / 1e6


@dataclass
class Count:
    """The harness' own ledger beside the client's."""

    submitted: int = 0
    delivered: int = 0
    wrong: int = 0
    twice: int = 0
    dead: int = 0


def feed(site: Site, log: Log, seconds: float, seed: int) -> tuple[Count, dict[str, Any]]:
    """Feed until the time is up and the faults are over; count every end."""
    count, flown = Count(), set()
    trouble = Troublemaker(site, log, seconds, seed)
    source = numbered_batches(seed)

    def batches() -> Iterator[Batch]:
        while log.now() < seconds:
            batch = next(source)
            count.submitted += 1
            flown.add(batch.names[0])
            yield batch

    trouble.start()
    for end in site.pipeline.run(batches()):
        if end.batch.names[0] not in flown:
            count.twice += 1
            continue
        flown.discard(end.batch.names[0])
        if isinstance(end, BatchResult):
            count.delivered += 1
            count.wrong += not is_right(end)
        else:
            count.dead += 1
        if not log.results or log.now() - log.results[-1][0] >= 1:
            log.results.append((log.now(), count.delivered))
    trouble.join()
    return count, site.pipeline.counts(finished=True).model_dump()


def draw(log: Log, file: Path) -> None:
    """Delivered batches and resident memory over time, with the faults."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 5))
    times, totals = zip(*log.results, strict=True)
    above.plot(times, totals)
    above.set_ylabel("results")
    for at, _fault in log.faults:
        above.axvline(at, color="0.8", linewidth=0.7, zorder=0)
    for name in ("broker", *NAMES):
        samples = [(t, rss / 1e6) for t, who, rss, _ in log.memory if who == name]
        below.plot(*zip(*samples, strict=True), ".", markersize=1.5, label=name)
    below.set_ylabel("resident MB")
    below.set_xlabel("s")
    below.set_ylim(bottom=0)
    below.legend(ncol=6, fontsize="small", loc="lower right", markerscale=4)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main() -> int:
    """Run, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="needs matplotlib")
    arguments = parser.parse_args()
    setup = Setup(
        devices=REPLICATED, slow_ms=SLOW_MS, full_length=True, through_proxy=NAMES, window=16
    )
    over = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="shardline-soak-") as folder,
        Site(setup, Path(folder)) as site,
    ):
        log = Log()
        watcher = threading.Thread(target=watch_memory, args=(site, log, over), daemon=True)
        watcher.start()
        count, ledger = feed(site, log, arguments.minutes * 60, arguments.seed)
        over.set()
        watcher.join()
        seconds, restarts = log.now(), site.supervisor.restarts
    missing = count.submitted - count.delivered - count.dead
    print(f"\n{seconds:.0f} s, {len(log.faults)} entries above, {restarts} stages started again")
    print(f"counted: {asdict(count)}, missing {missing}")
    print(f"the client's ledger: {ledger}")
    memory = {}
    print("resident MB:        median of the first fifth, of the last, peak, slope MB/h when warm")
    for name in ("broker", *NAMES):
        seen = [(t, rss, age_s) for t, who, rss, age_s in log.memory if who == name]
        warm = [(t, rss) for t, rss, age_s in seen if age_s > WARM_S]
        fifth = max(1, len(warm) // 5)
        first, last = (
            statistics.median(r for _, r in part) for part in (warm[:fifth], warm[-fifth:])
        )
        slope = slope_mb_per_hour(warm)
        memory[name] = {
            "first_mb": round(first / 1e6, 1),
            "last_mb": round(last / 1e6, 1),
            "peak_mb": round(max(rss for _, rss, _ in seen) / 1e6, 1),
            "slope_mb_per_hour": None if slope is None else round(slope, 1),
        }
        print(f"  {name:8} {memory[name]}")
    if arguments.json:
        document = {"seconds": seconds, "counted": asdict(count), "missing": missing}
        document |= {"ledger": ledger, "memory": memory, "faults": log.faults}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.picture:
        draw(log, arguments.picture)
    return 1 if missing or count.wrong or count.twice or count.dead else 0


if __name__ == "__main__":
    sys.exit(main())
