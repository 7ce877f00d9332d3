"""Two stages over MQTT against the same model in two stages over PyTorch RPC, and over gloo.

    python -m bench.rpc [--models mobilenet_v2,resnet50] [--batches 8] [--rounds 5] [--fold]

The published systems of this kind run eager PyTorch over PyTorch RPC with asynchronous futures.
Here that is written as well as we can: the same weights and images, uint8 on the way in and
normalised by the first stage, no gradients, one thread a stage, stage k pinned to the same
processor as ours, TensorPipe on loopback, several batches in flight. Cut, memory layout
(channels-last), window, way of passing on and transport are found by trying, for each model and
batch, before the rounds begin. The second opponent is PyTorch's own `torch.distributed.pipelining`
(ScheduleGPipe over gloo), tuned likewise.

All take turns in one run on the same two processors: ours, both rivals, and two independent
processes with the whole model in onnxruntime, the limit of ours. Before that, all must give the
same answer. ``--fold`` folds BatchNorm into the rivals' convolutions first, which eager PyTorch
leaves to its user.
"""

import itertools
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench.pinned_pipeline import Pair, PinnedPipeline, models, prepare, run_pipeline, spec_of
from bench.processes import confine_to_two_cpus
from bench.results import PLANS, Recorder, names, numbers, parser
from bench.rivals.groups import TRANSPORTS, GlooGroup, Job, RpcGroup
from bench.rounds import long_enough, ratio_spread, spread, take_turns
from bench.tables import Column, Row, figure, ratio, text
from bench.workers import WholeModelWorker
from client.settings import ClientSettings

SAME_ANSWER = 1e-2
"""Largest difference of two logits, as a share of the largest: beyond it, another model was run."""
OURS, RPC, GLOO, LIMIT = "shardline", "PyTorch RPC", "pipelining", "two processes"


def _median_of(side: str) -> Column:
    return Column(side, lambda row: f"{row['images_per_s'][side]['median']:,.1f}")


def _setting(side: str) -> Column:
    def show(row: Row) -> str:
        return ", ".join(f"{key} {value}" for key, value in row["settings"][side].items())

    return Column(f"{side}: tuned to", show, is_text=True)


COLUMNS = (
    text("model", "model"),
    text("batch", "batch"),
    *(_median_of(side) for side in (OURS, RPC, GLOO, LIMIT)),
    ratio("ours / RPC", "over_rpc"),
    ratio("ours / pipelining", "over_gloo"),
    ratio("ours / two processes", "of_limit"),
    figure("largest difference", "difference", 6),
    _setting(RPC),
    _setting(GLOO),
)


def measure(
    pair: Pair,
    job: Job,
    rounds: int,
    seconds: float,
    transports: list[str],
) -> dict[str, Any]:
    """One row of the table."""
    with ExitStack() as stack:
        rpc = stack.enter_context(tuned_rpc(job, transports, seconds / 2))
        gloo = GlooGroup(job)
        stack.enter_context(gloo)
        gloo.tune_all(seconds / 2)
        site = stack.enter_context(PinnedPipeline(pair.pipeline, pair.folder, job.cpus))
        workers = [
            stack.enter_context(WholeModelWorker(pair.whole_graph, cpu, pair.batch, pair.shape))
            for cpu in job.cpus
        ]
        client = site.client(ClientSettings("bench"))
        batch = pair.images()
        rate, results = run_pipeline(client, batch, 1.0)
        seconds = long_enough(seconds, rate / pair.batch)
        (answer,) = results[0].outputs.values()
        difference = max(
            difference_of(answer[0], rival.logits(), name)
            for name, rival in ((RPC, rpc), (GLOO, gloo))
        )

        def independent() -> float:
            for worker in workers:
                worker.start(seconds)
            return sum(worker.images_per_s() for worker in workers)

        sides = {
            OURS: lambda: run_pipeline(client, batch, seconds)[0],
            RPC: lambda: rpc.images_per_s(seconds),
            GLOO: lambda: gloo.images_per_s(seconds),
            LIMIT: independent,
        }
        rates = take_turns(sides, rounds)
    return {
        "model": pair.model,
        "batch": pair.batch,
        "over_rpc": ratio_spread(rates[OURS], rates[RPC]),
        "over_gloo": ratio_spread(rates[OURS], rates[GLOO]),
        "of_limit": ratio_spread(rates[OURS], rates[LIMIT]),
        "images_per_s": {name: spread(values, 1) for name, values in rates.items()},
        "difference": difference,
        "batch_norm_folded": job.fold,
        "settings": {
            RPC: {"transport": rpc.transport, **rpc.setting},
            GLOO: dict(gloo.setting),
        },
    }


def tuned_rpc(job: Job, transports: list[str], seconds: float) -> RpcGroup:
    """The fastest of TensorPipe's ways, each at its best."""
    best: tuple[float, RpcGroup] | None = None
    for transport in transports:
        group = RpcGroup(job, transport)
        try:
            reached = group.tune_all(seconds)
        except BaseException:
            group.__exit__()
            if best is not None:
                best[1].__exit__()
            raise
        if best is None or reached > best[0]:
            loser, best = best, (reached, group)
        else:
            loser = (reached, group)
        if loser is not None:
            loser[1].__exit__()
    assert best is not None
    return best[1]


def difference_of(ours: Any, theirs: list[float], name: str) -> float:
    """The largest difference of two logits, as a share of the largest.

    Raises:
        RuntimeError: it is so large that the rival computes something else.
    """
    mine, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    found = float(np.max(np.abs(mine - other)) / np.max(np.abs(mine)))
    if not found <= SAME_ANSWER:
        raise RuntimeError(f"{name} gives another answer, {found:.3g} of the largest logit away")
    return round(found, 8)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=5, seconds=4.0)
    options.add_argument("--models", default="mobilenet_v2,resnet50", help="or all: six CNNs")
    options.add_argument("--batches", type=numbers, default=[8])
    options.add_argument("--fold", action="store_true", help="the rivals fold BatchNorm")
    options.add_argument("--transports", type=names, default=list(TRANSPORTS), help="to try")
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    if unknown := set(chosen.transports) - set(TRANSPORTS):
        options.error(f"no such transport: {unknown}; there are {list(TRANSPORTS)}")
    cpus = confine_to_two_cpus()
    recorder = Recorder("rpc", COLUMNS, chosen.json)
    for model, batch in itertools.product(models(chosen.models), chosen.batches):
        pair = prepare(model, batch, chosen.plans)
        job = Job(spec_of(model), batch, cpus, chosen.fold)
        recorder.add(measure(pair, job, chosen.rounds, chosen.seconds, chosen.transports))
    recorder.finish()


if __name__ == "__main__":
    main()
