"""How long the partitioner takes, and how far from its proven bound it stays.

    python -m bench.planning [--seconds 10] [--model torchvision:densenet121]

A model of 24 segments on 16 devices: of four kinds (solved exactly) and all unlike (a plan and a
bound). Without a model, times, weights and edges are fixed numbers in the proportions of a
DenseNet121 on a Raspberry Pi 5; with one, they are those of its graph, by arithmetic operations.
"""

import itertools
import time
from dataclasses import dataclass, replace

from bench.results import Recorder, parser
from bench.tables import figure, text
from contract.prediction import Strategy
from planner.partition import partition
from planner.problem import MB, BrokerCosts, DeviceCosts, Link, Problem, RelayCosts
from planner.rules import Objective, Rules

SEGMENT_MS = (
    *(9.8, 5.1, 6.0, 6.4, 6.9, 7.3, 7.8, 3.9, 9.2, 10.1, 10.9, 11.6),
    *(3.1, 8.4, 9.0, 9.7, 10.3, 10.8, 2.6, 5.4, 5.7, 6.1, 4.8, 0.4),
)
WEIGHT_KB = (
    *(38, 180, 195, 210, 225, 240, 255, 132, 640, 700, 760, 820),
    *(526, 1900, 2150, 2400, 2650, 2900, 2100, 1750, 1900, 2050, 2200, 4100),
)
EDGE_KB = (
    *(151, 803, 1204, 1606, 2007, 2408, 2810, 3211, 401, 803, 1004, 1204, 1606),
    *(201, 401, 502, 602, 702, 803, 100, 151, 175, 188, 201, 4),
)
"""The first is the image as uint8, the last the scores; batches of one."""
KINDS = (
    # name, times as slow as a Pi 5, memory in MB, link in MB/s
    ("pi5", 1.0, 1500, 110.0),
    ("pi4", 2.6, 1500, 110.0),
    ("pi3", 6.5, 450, 11.0),
    ("zero2", 9.0, 180, 4.0),
)


COLUMNS = (
    text("devices", "devices"),
    text("strategy", "strategy"),
    text("objective", "objective"),
    figure("value", "value"),
    text("", "unit"),
    figure("gap, %", "gap_percent", 2),
    figure("stages", "stages", 0),
    figure("devices used", "devices_used", 0),
    figure("seconds", "seconds"),
)


@dataclass(frozen=True)
class Case:
    """A fleet and what is asked of it."""

    name: str
    problem: Problem
    strategy: Strategy
    objective: Objective = "throughput"


def device(name: str, slower: float, memory_mb: int, link_mb_per_s: float) -> DeviceCosts:
    """A device so many times as slow as a Pi 5; unpacked weights cost a quarter more."""
    times = tuple(ms * slower for ms in SEGMENT_MS)
    return DeviceCosts(
        name,
        times,
        RelayCosts(0.2 * slower, 2.5e-6 * slower),
        Link(link_mb_per_s * 1e6, link_mb_per_s * 1e6, 0.4),
        memory_bytes=memory_mb * MB,
        unpacked_ms=tuple(1.25 * ms for ms in times),
    )


def four_kinds() -> Problem:
    """Four each of four kinds of Pi."""
    devices = tuple(
        device(f"{name}-{index}", slower, memory, link)
        for name, slower, memory, link in KINDS
        for index in range(4)
    )
    return synthetic(devices)


def with_little_memory(problem: Problem) -> Problem:
    """Room for a part of the weights, for more on the faster devices: stages become necessary."""
    devices = tuple(
        replace(one, memory_bytes=(96 + 2 * (len(problem.devices) - index)) * MB)
        for index, one in enumerate(problem.devices)
    )
    return replace(problem, devices=devices)


def all_unlike(count: int = 16) -> Problem:
    """From a Pi 5 to a third of one's speed and beyond, no two alike."""
    devices = tuple(
        device(f"pi-{index}", 1.0 + 0.35 * index, 1500 - 70 * index, 110.0 / (1 + index % 5))
        for index in range(count)
    )
    return synthetic(devices)


def synthetic(devices: tuple[DeviceCosts, ...]) -> Problem:
    """The fixed numbers of this file."""
    return Problem(
        devices,
        weight_bytes=tuple(kb * 1000 for kb in WEIGHT_KB),
        activation_bytes=tuple(2000 * max(pair) for pair in itertools.pairwise(EDGE_KB)),
        edge_bytes=tuple(kb * 1000 for kb in EDGE_KB),
        broker=BrokerCosts(110e6, RelayCosts(0.05, 1e-7)),
    )


def of_model(model: str, problem: Problem) -> Problem:
    """The same devices and a real graph: its weights, edges and operations, its time the same."""
    from planner.canonical import canonicalise
    from planner.graph import edge_bytes, segment_graph
    from planner.importers import ImportOptions, import_model

    graph = segment_graph(canonicalise(import_model(model, ImportOptions(weights="random"))))
    edges = tuple(edge_bytes(graph, 1))
    work = [max(segment.flops_per_image, 1) for segment in graph.segments]

    def timed(one: DeviceCosts) -> DeviceCosts:
        times = tuple(sum(one.segment_ms) * part / sum(work) for part in work)
        return replace(one, segment_ms=times, unpacked_ms=tuple(1.25 * ms for ms in times))

    return replace(
        problem,
        devices=tuple(timed(one) for one in problem.devices),
        weight_bytes=tuple(segment.weight_bytes for segment in graph.segments),
        activation_bytes=tuple(2 * max(pair) for pair in itertools.pairwise(edges)),
        edge_bytes=edges,
    )


def cases(model: str | None) -> list[Case]:
    """What is measured."""
    found = []
    for name, problem in (
        ("16 of four kinds", four_kinds()),
        ("8 all unlike", all_unlike(8)),
        ("12 all unlike", all_unlike(12)),
        ("16 all unlike", all_unlike()),
        ("12 all unlike, little memory", with_little_memory(all_unlike(12))),
        ("16 all unlike, little memory", with_little_memory(all_unlike())),
    ):
        given = of_model(model, problem) if model else problem
        strategies: tuple[Strategy, ...] = ("mixed", "pipeline")
        found += [Case(name, given, strategy) for strategy in strategies]
        found.append(Case(name, given, "pipeline", "latency"))
    return found


def main() -> None:
    """Print one row for each fleet and question."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=10.0, help="for one question, at most")
    options.add_argument("--model", help="as `shardline plan` takes it; default: fixed numbers")
    chosen = options.parse_args()
    recorder = Recorder("planning", COLUMNS, chosen.json)
    for case in cases(chosen.model):
        rules = Rules(case.strategy, objective=case.objective, seconds=chosen.seconds)
        started = time.perf_counter()
        found = partition(case.problem, rules)
        recorder.add(
            {
                "devices": case.name,
                "strategy": case.strategy,
                "objective": case.objective,
                "value": found.value,
                "unit": "batches/s" if case.objective == "throughput" else "ms",
                "gap_percent": 100 * abs(found.bound - found.value) / found.bound,
                "stages": len(found.stages),
                "devices_used": sum(len(stage.devices) for stage in found.stages),
                "seconds": time.perf_counter() - started,
            }
        )
    recorder.finish()


if __name__ == "__main__":
    main()
