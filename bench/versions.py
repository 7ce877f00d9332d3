"""A change before and after: the pipelines of two checkouts in turns.

    python -m bench.versions --before CHECKOUT [--models mobilenet_v2] [--identity 75] [--rounds 9]

For whoever speeds something up: what another checkout (a `git worktree` of the commit before) and
this one reach with the same plans on the same two processors, and the processor time for a batch,
of stages, broker and client together. The stages are pinned as in bench.pipeline. ``--identity KB``
is one stage that computes nothing. A version compared with itself shows what the noise is.
"""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.identity_plan import make_identity_plan
from bench.pinned_pipeline import models, prepare
from bench.processes import confine_to_two_cpus
from bench.results import PLANS, Recorder, numbers, parser
from bench.rounds import ratio_spread, spread, take_turns
from bench.tables import Column, figure, ratio, text
from bench.workers import LineProcess
from contract.plan import PLAN_FILE

HERE = Path(__file__).parent.parent
DRIVER = Path(__file__).parent / "versions_driver.py"
BEFORE, AFTER = "before", "after"
COLUMNS = (
    text("work", "work"),
    text("batch", "batch"),
    ratio("throughput, after / before", "throughput", 3),
    ratio("processor time, after / before", "processor_time", 3),
    Column("batches/s after", lambda row: f"{row['batches_per_s'][AFTER]['median']:,.1f}"),
    figure("CPU ms a batch before", "cpu_ms_before", 3),
    figure("after", "cpu_ms_after", 3),
)


def measure(
    work: str,
    batch: int,
    told: dict[str, Any],
    checkouts: dict[str, Path],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """One row. ``told``: what the driver needs."""
    with ExitStack() as stack:
        drivers = {}
        for name, checkout in checkouts.items():
            command = ["-P", str(DRIVER), json.dumps(told)]
            environment = {"PYTHONPATH": str(checkout)}
            driver = LineProcess(command, None, environment, module=False)
            drivers[name] = stack.enter_context(driver)
            driver.hear()

        def turn(driver: LineProcess) -> list[float]:
            driver.tell(str(seconds))
            found: list[float] = json.loads(driver.hear())
            return found

        sides = {name: lambda d=driver: turn(d) for name, driver in drivers.items()}
        turns = take_turns(sides, rounds)
    rates = {name: [rate for rate, _ in found] for name, found in turns.items()}
    cpu_ms = {name: [cpu for _, cpu in found] for name, found in turns.items()}
    return {
        "work": work,
        "batch": batch,
        "throughput": ratio_spread(rates[AFTER], rates[BEFORE], 4),
        "processor_time": ratio_spread(cpu_ms[AFTER], cpu_ms[BEFORE], 4),
        "batches_per_s": {name: spread(values, 2) for name, values in rates.items()},
        "cpu_ms_before": spread(cpu_ms[BEFORE], 4)["median"],
        "cpu_ms_after": spread(cpu_ms[AFTER], 4)["median"],
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=9, seconds=2.0)
    options.add_argument("--before", type=Path, required=True, help="another checkout")
    options.add_argument("--models", default="mobilenet_v2", help="empty leaves them out")
    options.add_argument("--batches", type=numbers, default=[1])
    options.add_argument("--identity", type=numbers, default=[75], help="KB; 0 leaves it out")
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    cpus = confine_to_two_cpus()
    checkouts = {BEFORE: chosen.before.resolve(), AFTER: HERE}
    recorder = Recorder("versions", COLUMNS, chosen.json)
    limits = (checkouts, chosen.rounds, chosen.seconds)
    for model in models(chosen.models):
        for batch in chosen.batches:
            pair = prepare(model, batch, chosen.plans)
            folder = str((pair.folder / pair.pipeline.name).resolve())
            told = {"plan": folder, "shards": folder, "engine": "onnxruntime", "cpus": cpus}
            recorder.add(measure(pair.model, batch, told, *limits))
    for kilobytes in filter(None, chosen.identity):
        with tempfile.TemporaryDirectory(prefix="versions-") as folder:
            shards = Path(folder) / "identity"
            plan = make_identity_plan(Path(folder), kilobytes * 1000)
            (shards / PLAN_FILE).write_text(plan.to_json())
            told = {"plan": str(shards), "shards": folder, "engine": "identity", "cpus": cpus}
            recorder.add(measure(f"nothing, {kilobytes} KB", 1, told, *limits))
    recorder.finish()


if __name__ == "__main__":
    main()
