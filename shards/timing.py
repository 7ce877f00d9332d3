"""Times a graph in onnxruntime: as a whole, and kernel by kernel. Medians, after a warm-up.

The same on the planner's machine and on a device, so that their profiles can be compared.
"""

import json
import statistics
import tempfile
import time
from collections import defaultdict
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
_KERNEL = "_kernel_time"

Feed = dict[str, npt.NDArray[Any]]


class KernelTimes(NamedTuple):
    """Median ms of every kernel, in the order in which they ran, and how many runs were timed."""

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
    return KernelTimes(_medians(kernels, len(kernels) // runs), runs - WARM_UP_RUNS)


def _medians(kernels: Sequence[dict[str, Any]], per_run: int) -> list[tuple[str, float]]:
    durations: dict[int, list[float]] = defaultdict(list)
    for position, event in enumerate(kernels[WARM_UP_RUNS * per_run :]):
        durations[position % per_run].append(event["dur"] / 1e3)
    return [
        (kernels[position]["name"].removesuffix(_KERNEL), statistics.median(durations[position]))
        for position in range(per_run)
    ]


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
