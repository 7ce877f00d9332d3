"""Runs the short set of benchmarks, or all of them, and renders bench/README.md.

    python -m bench [--full] [--only pipeline,rpc] [--results bench/results]

Each is a process of its own. One that fails does not keep the others from running; the last line
says which did, and the exit status is 1.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from bench.render import PICTURE, README, render_files
from bench.results import PLANS, RESULTS, names

SHORT: dict[str, list[str]] = {
    "imports": ["--rounds", "5"],
    "start_up": ["--models", "mobilenet_v2", "--rounds", "5"],
    "memory": [],
    "hop": ["--rounds", "3", "--count", "60"],
    "codecs": ["--rounds", "9"],
    "payload": ["--sizes", "1,75,300,1600,8000", "--rounds", "3", "--seconds", "0.5"],
    "pipeline": ["--rounds", "5", "--seconds", "2"],
    "engines": ["--models", "mobilenet_v2", "--rounds", "5", "--seconds", "1"],
    "overhead": ["--rounds", "12", "--seconds", "1.5"],
    "rpc": ["--rounds", "3", "--seconds", "3"],
    "llm": ["--rounds", "3", "--tokens", "32"],
}
FULL: dict[str, list[str]] = {
    "imports": [],
    "start_up": [],
    "memory": [],
    "hop": [],
    "codecs": [],
    "payload": ["--rounds", "5"],
    "pipeline": ["--models", "all"],
    "engines": ["--models", "all"],
    "overhead": ["--batches", "1,8", "--rounds", "20"],
    "rpc": ["--models", "all", "--batches", "1,8"],
    "llm": [],
    "journal": [],
    "planning": [],
}
WITH_PLANS = ("start_up", "memory", "pipeline", "engines", "overhead", "rpc", "llm", "journal")


def command(name: str, arguments: list[str], results: Path, plans: Path) -> list[str]:
    """What runs one of them."""
    made = [sys.executable, "-m", f"bench.{name}", *arguments]
    made += ["--json", str(results / f"{name}.json")]
    return [*made, "--plans", str(plans)] if name in WITH_PLANS else made


def main() -> None:
    """Run, render, say what failed."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--full", action="store_true", help="all models and the long ones")
    options.add_argument("--only", type=names, help="these alone")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--plans", type=Path, default=PLANS)
    options.add_argument("--readme", type=Path, default=README)
    options.add_argument("--picture", type=Path, default=PICTURE)
    chosen = options.parse_args()
    wanted = FULL if chosen.full else SHORT
    if chosen.only:
        if unknown := set(chosen.only) - set(FULL):
            options.error(f"no such benchmark: {', '.join(sorted(unknown))}; {', '.join(FULL)}")
        wanted = {name: wanted.get(name, FULL[name]) for name in chosen.only}
    failed = []
    for name, arguments in wanted.items():
        print(f"\n== bench.{name} {' '.join(arguments)}", flush=True)
        started = time.monotonic()
        if subprocess.run(command(name, arguments, chosen.results, chosen.plans)).returncode:
            failed.append(name)
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
    render_files(chosen.results, chosen.readme, chosen.picture)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
