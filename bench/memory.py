"""Memory of a stage process that holds half a model, beside one that holds all of it, and torch.

    python -m bench.memory [--model resnet50] [--batch 1]

The model is cut where half of its weights lie on each side. Each stage process is the real
`shardline stage`; steady is its resident memory after 20 batches, peak is VmHWM, both in MB (10^6
bytes). Mapped weights count as resident once touched. Linux only.
"""

import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from bench.pinned_pipeline import short_name, spec_of
from bench.processes import resident
from bench.results import PLANS, Recorder, parser
from bench.tables import figure, text
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from client.batch import Batch
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.errors import PlanError
from contract.plan import Plan, Replica, load_plan
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import SegmentedGraph, segment_graph
from planner.importers import ImportOptions, import_model
from planner.publish import Publisher
from planner.request import PlanRequest

BATCHES = 20
AIM_BASE_BYTES = 90e6
AIM_FACTOR = 1.3
COLUMNS = (
    text("process", "process"),
    figure("weights, MB", "weights_mb", 0),
    figure("steady", "steady_mb", 0),
    figure("peak", "peak_mb", 0),
    figure("aim", "aim_mb", 0),
)


def half_weight_cut(graph: SegmentedGraph) -> str:
    """The cut point with nearest to half of the weights before it."""
    total = sum(segment.weight_bytes for segment in graph.segments)
    before, best = 0, ("", float("inf"))
    for cut, segment in zip(graph.cuts, graph.segments, strict=False):
        before += segment.weight_bytes
        best = min(best, (cut.name, abs(before - total / 2)), key=lambda pair: pair[1])
    return best[0]


def prepare(model: str, batch: int, folder: Path) -> tuple[Plan, Plan]:
    """The model in two halves, and whole."""
    short = short_name(model)
    names = [f"{short}-{batch}-halves", f"{short}-{batch}-all"]
    with suppress(PlanError):  # there is none yet, or of an older format
        halves, whole = (load_plan(folder / name) for name in names)
        return halves, whole
    imported = import_model(spec_of(model), ImportOptions(weights="random"))
    graph = segment_graph(canonicalise(imported))
    cuts = ((half_weight_cut(graph),), ())
    plans = []
    for name, cut in zip(names, cuts, strict=True):
        devices = tuple((Replica(device=f"mem-{index}"),) for index in range(len(cut) + 1))
        request = PlanRequest(
            name, folder, cuts=cut or None, num_stages=1, batch_size=batch, devices=devices
        )
        plans.append(build_plan(imported, graph, request))
    return plans[0], plans[1]


def measure(plan: Plan, folder: Path, prepack: bool) -> list[dict[str, object]]:
    """One row for each stage of the plan."""
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        connect = Connector(broker.address)
        processes = []
        for place in plan.placement:
            command = [sys.executable, "-m", "shardline", "stage", "--threads", "1"]
            command += ["--device", place.replicas[0].device, "--shards", str(folder / plan.name)]
            command += ["--broker", str(broker.address)] + ([] if prepack else ["--no-prepack"])
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process)
        with Publisher(connect, "default", "planner") as publisher:
            publisher.publish(plan)
            publisher.wait_until_ready(plan, 60, lambda _step, _fraction: None)
        pipeline = stack.enter_context(Pipeline(ClientSettings("bench"), connect))
        pipeline.open()
        spec = plan.stages[0].inputs[0]
        shape = (plan.batch_size, *(int(size) for size in spec.shape[1:]))
        batch = Batch({spec.name: np.zeros(shape, spec.dtype)}, ("x",) * plan.batch_size)
        list(pipeline.run([batch] * BATCHES))
        rows: list[dict[str, object]] = []
        for process, stage in zip(processes, plan.stages, strict=True):
            steady, peak = resident(process.pid)
            # In hand at once: receive-maximum inputs, as many outputs, and what the engine keeps.
            per_image = stage.input_bytes_per_image + stage.output_bytes_per_image
            activations = 3 * per_image * plan.batch_size
            aim = stage.weight_bytes * AIM_FACTOR + activations + AIM_BASE_BYTES
            rows.append(
                {
                    "process": f"{plan.name} stage {stage.stage_index}"
                    + ("" if prepack else ", no prepack"),
                    "weights_mb": round(stage.weight_bytes / 1e6, 1),
                    "steady_mb": round(steady / 1e6, 1),
                    "peak_mb": round(peak / 1e6, 1),
                    "aim_mb": round(aim / 1e6, 1),
                }
            )
        return rows


def torch_only() -> dict[str, object]:
    """A process that has imported torch and nothing else."""
    code = "import torch, sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        steady, peak = resident(process.pid)
    return {
        "process": "import torch, nothing else",
        "weights_mb": 0.0,
        "steady_mb": round(steady / 1e6, 1),
        "peak_mb": round(peak / 1e6, 1),
        "aim_mb": None,
    }


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--model", default="resnet50")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    halves, whole = prepare(chosen.model, chosen.batch, chosen.plans)
    recorder = Recorder("memory", COLUMNS, chosen.json)
    recorder.add(torch_only())
    for prepack in (True, False):
        for plan in (halves, whole):
            for row in measure(plan, chosen.plans, prepack):
                recorder.add(row)
    recorder.finish()


if __name__ == "__main__":
    main()
