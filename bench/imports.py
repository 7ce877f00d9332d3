"""What the imports of `shardline stage` cost, by package, beside those of torch.

    python -m bench.imports [--rounds 7]

Python's own clock (`-X importtime`), which slows imports by some percent, on one processor. Each
package has the time of its own modules, without what they import from others; our own packages are
one row, Python's standard library is another. Nothing is run, only imported.
"""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench.processes import confine_to_two_cpus, on_cpu
from bench.results import Recorder, parser
from bench.rounds import ratio_spread, spread, take_turns
from bench.tables import figure, ratio, text

STAGE = "import shardline.__main__, shardline.commands.stage, stage.agent, "
STAGE += "stage.engines.onnx_runtime"
TORCH = "import torch"
OURS = frozenset({"contract", "broker", "shards", "stage", "shardline"})
STANDARD, SHARDLINE, REST, ALL = "standard library", "shardline", "others", "all"
LEAST_MS = 5.0
"""Packages below it are one row."""
COLUMNS = (
    text("imported", "process"),
    text("package", "package"),
    figure("ms", "ms", 0),
    ratio("times `import torch`", "of_torch", 3),
)
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


def by_package(report: str) -> dict[str, float]:
    """Milliseconds by package from what `-X importtime` prints. Pure."""
    found: dict[str, float] = {}
    for own_us, module in _LINE.findall(report):
        package = module.partition(".")[0]
        if package in OURS:
            package = SHARDLINE
        elif package in sys.stdlib_module_names or package.startswith(("_", "encodings")):
            package = STANDARD
        found[package] = found.get(package, 0.0) + int(own_us) / 1e3
    return found


def measure(code: str, cpu: int) -> dict[str, float]:
    """Import it in a process of its own."""
    done = subprocess.run(
        on_cpu(cpu, [sys.executable, "-X", "importtime", "-c", code]),
        capture_output=True,
        text=True,
        check=True,
    )
    return by_package(done.stderr)


def rows(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Medians by process and package, the dearest first; small ones together. Pure."""
    torch_ms = [sum(one.values()) for one in found[TORCH]]
    made = []
    for process, runs in found.items():
        totals = [sum(one.values()) for one in runs]
        made.append(_row(process, ALL, totals, torch_ms))
        if process == TORCH:
            continue
        names = {name for one in runs for name in one}
        by_name = {name: [one.get(name, 0.0) for one in runs] for name in names}
        medians = {name: spread(values)["median"] for name, values in by_name.items()}
        large = sorted((n for n in names if medians[n] >= LEAST_MS), key=lambda n: -medians[n])
        made += [_row(process, name, by_name[name], torch_ms) for name in large]
        small = [sum(v for n, v in one.items() if n not in large) for one in runs]
        made.append(_row(process, REST, small, torch_ms))
    return made


def _row(
    process: str, package: str, ms: Sequence[float], torch_ms: Sequence[float]
) -> dict[str, Any]:
    return {
        "process": process,
        "package": package,
        "ms": spread(ms)["median"],
        "of_torch": ratio_spread(ms, torch_ms, 4),
    }


def main() -> None:
    """Measure and print."""
    chosen = parser(__doc__, rounds=7).parse_args()
    cpu, _ = confine_to_two_cpus()
    recorder = Recorder("imports", COLUMNS, chosen.json)
    sides = {
        "shardline stage": lambda: measure(STAGE, cpu),
        TORCH: lambda: measure(TORCH, cpu),
    }
    take_turns(sides, 1)
    for row in rows(take_turns(sides, chosen.rounds)):
        recorder.add(row)
    recorder.finish()


if __name__ == "__main__":
    main()
