"""Times a graph on made-up weights, in a process of its own: `python -m stage.measure`.

The agent starts it, writes a job to its stdin and reads an outcome from its stdout
(:mod:`stage.measure_job`). So the peak of memory is the graph's alone, memory goes back at the end,
and a graph that crashes the engine, or needs more memory than there is, ends this process and not
the agent.
"""

import os
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import psutil

from contract.command import MAX_KERNEL_NAME, MAX_KERNELS, GeneratedWeight
from contract.errors import EngineError, ShardlineError
from contract.tensor_spec import BATCH, TensorSpec
from shards.external_data import check_external_data
from shards.manifest import GRAPH_FILE, WEIGHTS_FILE
from shards.session import Session, open_with, session_options
from shards.timing import DENORMALS_ARE_ZERO, Feed, run_often, time_kernels, time_once
from stage.measure_job import Job, Outcome

BLOCK_NUMBERS = 1 << 20
"""So many random numbers are made, and repeated to fill a weight: a Pi makes about 30 million a
second, and has more to do than that."""
SHIFT_NUMBERS = 10_007
"""From one weight to the next; odd, so that as many weights differ as there are numbers."""
MAX_INPUT_BYTES = 1 << 30
BURST_S = 3.0
"""How long a device counts as fresh: a processor is throttled after longer than that."""


def run_job(job: Job) -> Outcome:
    """Make the weights unless they are there, load the graph, run it.

    Raises:
        EngineError: onnxruntime cannot load or run it, or it is too large to be measured.
        ShardError: it is no graph, or names other files than its weights.
        OSError: the weights cannot be written.
    """
    measure, folder = job.measure, Path(job.folder)
    graph, weights = folder / GRAPH_FILE, folder / WEIGHTS_FILE
    check_external_data(graph, measure.weights_size_bytes)
    if not weights.exists():
        write_weights(weights, measure.weights, measure.weights_size_bytes)
    feed = make_inputs(measure.inputs, measure.batch_size)
    base = psutil.Process().memory_info().rss
    options = session_options(job.threads, job.prepack)
    for key, value in DENORMALS_ARE_ZERO.items():
        options.add_session_config_entry(key, value)
    session = open_with(graph, options)
    load_peak = peak_memory()
    whole_ms = statistics.median(run_often(session, feed, measure.budget_s))
    share = None
    if job.prepack and measure.sustained_s > 0:
        share = sustained_share(run_for(session, feed, measure.sustained_s))
    peak = peak_memory()
    del session
    kernels: list[tuple[str, float]] = []
    if job.prepack:
        kernels = time_kernels(
            graph, feed, job.threads, measure.budget_s, DENORMALS_ARE_ZERO
        ).kernels
    if len(kernels) > MAX_KERNELS:
        raise EngineError(
            f"the graph has {len(kernels):,} kernels, an answer holds {MAX_KERNELS:,}; "
            "measure fewer segments at once"
        )
    return Outcome(
        whole_ms=round(whole_ms, 4),
        kernels=tuple((name[:MAX_KERNEL_NAME], round(ms, 4)) for name, ms in kernels),
        base_bytes=base,
        load_peak_bytes=load_peak,
        peak_bytes=peak,
        sustained_share=share,
    )


def write_weights(
    path: Path, weights: tuple[GeneratedWeight, ...], size_bytes: int, seed: int = 0
) -> None:
    """A file of ``size_bytes`` with seeded normal numbers where the weights lie, zeros between.

    No two weights are equal: onnxruntime would keep one packed copy for both, and the processor's
    cache would hold it (a ViT of 346 MB then ran in 125 MB).

    Raises:
        OSError: no room, or no right to write.
    """
    block = np.random.default_rng(seed).standard_normal(BLOCK_NUMBERS, np.float32)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for index, weight in enumerate(weights):
            numbers = np.roll(block, index * SHIFT_NUMBERS) * np.float32(weight.scale)
            file.seek(weight.offset)
            _fill(file, numbers.astype(weight.dtype), weight.length)


def _fill(file: BinaryIO, numbers: npt.NDArray[Any], length: int) -> None:
    data = numbers.view(np.uint8).data
    for begin in range(0, length, len(data)):
        file.write(data[: length - begin])


def make_inputs(specs: tuple[TensorSpec, ...], batch_size: int) -> Feed:
    """Seeded inputs that fit: N(0, 1) floats, all uint8 values, or small integers.

    Raises:
        EngineError: they would take more than a gigabyte.
    """
    size_bytes = sum(spec.bytes_of(batch_size) for spec in specs)
    if size_bytes > MAX_INPUT_BYTES:
        raise EngineError(f"inputs of {size_bytes:,} bytes; measure a smaller batch")
    generator = np.random.default_rng(0)
    feed: Feed = {}
    for spec in specs:
        shape = [batch_size if size == BATCH else int(size) for size in spec.shape]
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            feed[spec.name] = generator.standard_normal(shape, np.float32).astype(dtype, copy=False)
        else:
            high = {"uint8": 256, "bool": 2}.get(spec.dtype, 8)
            feed[spec.name] = generator.integers(0, high, shape, dtype)
    return feed


def run_for(session: Session, feed: Feed, seconds: float) -> list[tuple[float, float]]:
    """Run without a pause. For each run: when it began, in s from the first one, and its ms."""
    started = time.perf_counter()
    runs: list[tuple[float, float]] = []
    while not runs or runs[-1][0] + runs[-1][1] / 1e3 < seconds:
        began_s = time.perf_counter() - started
        runs.append((began_s, time_once(session, feed)))
    return runs


def sustained_share(runs: list[tuple[float, float]]) -> float | None:
    """Speed in the last third over that of the first seconds; None for too few runs. Pure.

    Args:
        runs: start in s and duration in ms of each.
    """
    last_s = runs[-1][0]
    fresh = [ms for began_s, ms in runs if began_s <= min(BURST_S, last_s / 3)]
    late = [ms for began_s, ms in runs if began_s >= last_s * 2 / 3]
    if len(runs) < 3 or statistics.median(late) <= 0:
        return None
    return round(statistics.median(fresh) / statistics.median(late), 4)


def peak_memory() -> int:
    """Bytes of resident memory that this process had at most.

    Not from getrusage: that remembers the size of the process which this one was started from.
    """
    with suppress(OSError, ValueError):
        for line in Path("/proc/self", "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    """Read a job from stdin, do it, write the outcome to stdout."""
    with suppress(OSError):  # when memory runs out, the kernel takes this process and not the agent
        Path("/proc/self/oom_score_adj").write_text("1000")
    # What the process of a stage has in memory before any weight: `base_bytes` is to hold it.
    import stage.agent
    import stage.engines.onnx_runtime  # noqa: F401

    job = Job.model_validate_json(sys.stdin.buffer.read())
    try:
        outcome = run_job(job)
    except ShardlineError as error:
        outcome = Outcome(error=str(error)[:2000])
    except (MemoryError, OSError) as error:
        outcome = Outcome(error=f"{type(error).__name__}: {error}"[:2000])
    sys.stdout.write(outcome.model_dump_json())
    sys.stdout.flush()
    os._exit(0)  # an engine that crashes while it is torn down has no say any more


if __name__ == "__main__":
    main()
