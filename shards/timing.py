"""Times a graph in onnxruntime: as a whole, and kernel by kernel, after a warm-up.

The same on the planner's machine and on a device, so that their profiles can be compared.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from contract.errors import EngineError
from shards.session import Session, engine_version, open_with, run_session, session_options

WARM_UP_RUNS = 2
MIN_ROUNDS = 3
MAX_ROUNDS = 50
DENORMALS_ARE_ZERO = {"session.set_denormal_as_zero": "1"}
"""For made-up weights: numbers that die out are many times slower to compute with."""
OUTLIER = 1.25
"""A run that took so many times as long as the median one tells of something else."""
_KERNEL = "_kernel_time"

Feed = dict[str, npt.NDArray[Any]]


class KernelTimes(NamedTuple):
    """Mean ms of every kernel, in the order in which they ran, and how many runs were timed."""

    kernels: list[tuple[str, float]]
    runs: int


def time_kernels(
    graph: Path, feed: Feed, threads: int, budget_s: float, config: Mapping[str, str] | None = None
) -> KernelTimes:
    """Run a graph with onnxruntime's profiler.

    Args:
        graph: the graph's file; the weights lie beside it.
        feed: the inputs by name.
        threads: of the engine.
        budget_s: about how long to run.
        config: further entries of the session's options.

    Raises:
        EngineError: onnxruntime cannot run the graph, or reports other kernels in each run.
    """
    with tempfile.TemporaryDirectory(prefix="shardline-profile-") as folder:
        options = session_options(threads)
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "kernels")
        session = open_with(graph, options)
        runs = WARM_UP_RUNS + len(run_often(session, feed, budget_s))
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    kernels.sort(key=lambda event: event["ts"])
    if not kernels or len(kernels) % runs:
        raise EngineError(
            f"onnxruntime {engine_version()} reports {len(kernels)} kernels of {runs} runs, "
            "expected as many in each; install the version that pyproject.toml names"
        )
    per_run = len(kernels) // runs
    names = [str(event["name"]).removesuffix(_KERNEL) for event in kernels[:per_run]]
    durations_ms = [event["dur"] / 1e3 for event in kernels[WARM_UP_RUNS * per_run :]]
    means = mean_of_ordinary_runs(durations_ms, per_run)
    return KernelTimes(list(zip(names, means, strict=True)), runs - WARM_UP_RUNS)


def mean_of_ordinary_runs(durations_ms: Sequence[float], per_run: int) -> list[float]:
    """Mean of each kernel over the runs that took about as long as most. Pure.

    Not the median of each kernel: where a container has a share of a processor, the kernel stops it
    some times in a run, and a short kernel is rarely hit. By medians all short ones together would
    seem quicker than they are, beside the long ones.

    Args:
        durations_ms: of all kernels of all runs, in order.
        per_run: how many kernels a run has.
    """
    runs = [durations_ms[at : at + per_run] for at in range(0, len(durations_ms), per_run)]
    limit_ms = OUTLIER * statistics.median(map(sum, runs))
    ordinary = [run for run in runs if sum(run) <= limit_ms]
    return [statistics.fmean(times) for times in zip(*ordinary, strict=True)]


def run_often(session: Session, feed: Feed, budget_s: float) -> list[float]:
    """Times in ms of runs after the warm-up, as many as the budget allows.

    Raises:
        EngineError: onnxruntime cannot run the graph.
    """
    for _ in range(WARM_UP_RUNS):
        run_session(session, feed)
    times: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(times) < MIN_ROUNDS or (time.perf_counter() < deadline and len(times) < MAX_ROUNDS):
        times.append(time_once(session, feed))
    return times


def time_once(session: Session, feed: Feed) -> float:
    """One run in ms."""
    started = time.perf_counter()
    run_session(session, feed)
    return (time.perf_counter() - started) * 1e3
