"""The long run: `python -m tests.fuzz [TARGET …] --minutes 10`.

Each target runs in a process of its own with a limit on its memory, by coverage with atheris where
that is installed, by mutation of the corpus alone otherwise. An input that does harm is kept in the
folder of findings, and the run ends with 1.
"""

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.mutators import MUTATORS


def main() -> None:
    """Run the targets one after the other and print what each did."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*MUTATORS, []], metavar="TARGET")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--no-coverage", action="store_true", help="even if atheris is installed")
    chosen = parser.parse_args()
    module = "tests.fuzz.by_mutation"
    if not chosen.no_coverage and find_spec("atheris") is not None:
        module = "tests.fuzz.by_coverage"
    failed = []
    for target in chosen.targets or MUTATORS:
        findings = (chosen.findings / target).resolve()
        findings.mkdir(parents=True, exist_ok=True)
        print(f"{target}: {chosen.minutes:g} minutes with {module}", flush=True)
        command = [sys.executable, "-m", module, target, str(chosen.minutes * 60)]
        done = subprocess.run([*command, str(chosen.seed), str(findings)], check=False)
        if done.returncode:
            failed.append(target)
    if failed:
        sys.exit(f"harm was done: {', '.join(failed)}; the inputs are in {chosen.findings}")


if __name__ == "__main__":
    main()
