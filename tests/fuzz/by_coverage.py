"""One target under atheris, which follows coverage: `python -m tests.fuzz.by_coverage …`.

Optional: `pip install atheris`. Half of the mutations are ours, since a checksum stops all others.
"""

import sys
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(
    include=["contract", "shards", "stage.runner", "stage.dedup", "client.feed", "client.router"]
):
    from tests.fuzz import targets
    from tests.fuzz.corpus import CORPUS
    from tests.fuzz.mutators import MUTATORS
    from tests.fuzz.targets import TARGETS, run_measured

MEASURED_EVERY = 20
RSS_LIMIT_MB = 1500
PATIENCE_S = 20


def main() -> None:
    """Hand the target to libFuzzer, which ends the process."""
    name, seconds, seed, findings = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    target, mutate, count = TARGETS[name], MUTATORS[name], 0
    seeds = findings / "corpus"
    seeds.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(CORPUS[name]()):
        (seeds / f"seed-{index}").write_bytes(data)
        target(data)  # what is built once is not to be held against an input

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        if count % MEASURED_EVERY:
            target(data)
        else:
            run_measured(target, data)

    def mutated(data: bytes, max_size: int, number: int) -> bytes:
        dice = Random(number)
        if dice.randrange(2):
            return mutate(data, dice)[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    options = [
        f"-max_total_time={float(seconds):.0f}",
        f"-seed={int(seed) + 1}",
        f"-timeout={PATIENCE_S}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        "-max_len=200000",
        "-print_final_stats=1",
        f"-artifact_prefix={findings}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(seeds)], one, custom_mutator=mutated)
    try:
        atheris.Fuzz()
    finally:
        targets.clean_up()


if __name__ == "__main__":
    main()
