"""One target, mutations of its corpus, no coverage: `python -m tests.fuzz.by_mutation …`."""

import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from random import Random

from tests.fuzz import targets
from tests.fuzz.corpus import CORPUS
from tests.fuzz.mutators import MUTATORS
from tests.fuzz.targets import TARGETS, run_measured

MEASURED_EVERY = 20
"""Tracing memory costs more than most inputs."""
KEPT = 200
"""Inputs that are mutated further, the youngest of them."""
PATIENCE_S = 20
ROOM_BYTES = 1 << 30
"""Address space beyond what the process has when it begins: what Rust and C allocate counts too."""


def main() -> None:
    """Run until the time is up, or the first input that does harm."""
    name, seconds, seed, findings = sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4]
    dice = Random(f"{name} {seed}")
    corpus = CORPUS[name]()
    target, mutate = TARGETS[name], MUTATORS[name]
    for data in corpus:
        target(data)
    limit_memory()
    signal.signal(signal.SIGALRM, hang)
    grown = list(corpus)
    started, count, peak = time.monotonic(), 0, 0
    while time.monotonic() - started < seconds:
        data = mutate(dice.choice(grown if dice.randrange(2) else corpus), dice)
        signal.alarm(PATIENCE_S)
        try:
            if count % MEASURED_EVERY:
                target(data)
            else:
                peak = max(peak, run_measured(target, data))
        except BaseException:  # noqa: BLE001 whatever it is, the input is kept
            signal.alarm(0)
            file = Path(findings) / f"{count}-{seed}.bin"
            file.write_bytes(data)
            traceback.print_exc()
            print(f"{name}: after {count:,} inputs harm is done by {file}")
            targets.clean_up()
            sys.exit(1)
        signal.alarm(0)
        count += 1
        if len(data) < 20_000:
            grown.append(data)
            if len(grown) > KEPT:
                del grown[len(corpus)]
    took_s = time.monotonic() - started
    print(
        f"{name}: {count:,} inputs in {took_s:.0f} s, {count / took_s:,.0f} a second, no harm; "
        f"at most {peak / 1e6:.1f} MB for one",
        flush=True,
    )
    targets.clean_up()


def limit_memory() -> None:
    """No more address space than there is now and :data:`ROOM_BYTES`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def hang(_signal: int, _frame: object) -> None:
    """An input that takes so long is as bad as one that raises."""
    raise TimeoutError(f"no end after {PATIENCE_S} s")


if __name__ == "__main__":
    main()
