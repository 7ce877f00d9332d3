"""Random problems with random stages, and a solver for small ones that tries everything."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Literal

from contract.errors import PartitionError
from planner.cost_model import batches_per_s, latency_ms
from planner.partition import Rules
from planner.problem import (
    BrokerCosts,
    ClientCosts,
    DeviceCosts,
    Link,
    Problem,
    RelayCosts,
    Solution,
    StageChoice,
)

Kind = Literal["pipeline", "replicas", "mixed", "broker", "client"]
KINDS: tuple[Kind, ...] = ("pipeline", "replicas", "mixed", "broker", "client")
Stages = tuple[StageChoice, ...]


def random_plan(
    seed: int, kind: Kind, window_batches: int = 64, max_devices: int = 5
) -> tuple[Problem, Stages]:
    """Stages of a kind; «broker» and «client» are mixed plans with a slow broker or client.

    ``window_batches`` is by default so large that no device ever waits for an acknowledgement.
    """
    draw = random.Random(f"{seed} {kind}")
    num_segments, num_devices = draw.randint(2, 6), draw.randint(1, max_devices)
    devices = [
        DeviceCosts(
            name=f"pi-{index}",
            segment_ms=tuple(draw.uniform(0.5, 20) for _ in range(num_segments)),
            relay=RelayCosts(draw.uniform(0, 0.5), draw.uniform(0, 2e-6)),
            link=Link(
                10 ** draw.uniform(6.5, 8.5), 10 ** draw.uniform(6.5, 8.5), draw.choice([0, 0.2, 1])
            ),
        )
        for index in range(num_devices)
    ]
    broker, client = BrokerCosts(), ClientCosts(RelayCosts(0.05, 1e-6))
    if kind == "broker":
        broker = BrokerCosts(10 ** draw.uniform(6.0, 7.0), RelayCosts(0.02, 1e-7))
    if kind == "client":
        client = ClientCosts(
            RelayCosts(draw.uniform(1, 30), 1e-5),
            Link(10 ** draw.uniform(6, 7.5), 10 ** draw.uniform(6, 7.5), 0.3),
        )
    problem = Problem(
        devices=tuple(devices),
        weight_bytes=(10,) * num_segments,
        activation_bytes=(10,) * num_segments,
        edge_bytes=tuple(int(10 ** draw.uniform(3, 5.7)) for _ in range(num_segments + 1)),
        broker=broker,
        client=client,
        window_batches=window_batches,
    )
    names = [device.name for device in devices]
    draw.shuffle(names)
    if kind == "replicas":
        return problem, (StageChoice(0, num_segments, tuple(names)),)
    num_stages = draw.randint(1, min(num_segments, num_devices))
    groups = [[name] for name in names[:num_stages]]
    if kind != "pipeline":
        for name in names[num_stages:]:
            draw.choice(groups).append(name)
    cuts = [0, *sorted(draw.sample(range(1, num_segments), num_stages - 1)), num_segments]
    ranges = itertools.pairwise(cuts)
    return problem, tuple(
        StageChoice(first, end, tuple(group))
        for (first, end), group in zip(ranges, groups, strict=True)
    )


def every_plan(problem: Problem) -> Iterator[Stages]:
    """All ways to cut the segments and to give each stage at least one device, some left out."""
    names = [device.name for device in problem.devices]
    for num_stages in range(1, min(problem.num_segments, len(names)) + 1):
        for cuts in itertools.combinations(range(1, problem.num_segments), num_stages - 1):
            ranges = list(itertools.pairwise((0, *cuts, problem.num_segments)))
            for places in itertools.product(range(num_stages + 1), repeat=len(names)):
                groups = [_at(names, places, stage) for stage in range(num_stages)]
                if all(groups):
                    yield tuple(
                        StageChoice(first, end, group)
                        for (first, end), group in zip(ranges, groups, strict=True)
                    )


def _at(names: Sequence[str], places: Sequence[int], stage: int) -> tuple[str, ...]:
    return tuple(name for name, place in zip(names, places, strict=True) if place == stage)


def try_everything(problem: Problem, rules: Rules) -> Solution:
    """The best solution of all; for a handful of segments and devices."""
    ranked = [
        (_value(problem, stages, rules), -devices_of(stages), stages)
        for stages in every_plan(problem)
        if _keeps_to(stages, rules) and batches_per_s(problem, stages) > 0
    ]
    if not ranked:
        raise PartitionError(f"nothing fits {rules.strategy}")
    value, _, stages = max(ranked, key=lambda each: each[:2])
    return Solution(stages, abs(value), abs(value))


def _value(problem: Problem, stages: Stages, rules: Rules) -> float:
    if rules.objective == "latency":
        return -latency_ms(problem, stages)
    return batches_per_s(problem, stages)


def _keeps_to(stages: Stages, rules: Rules) -> bool:
    if rules.num_stages is not None and len(stages) != rules.num_stages:
        return False
    if rules.max_devices is not None and devices_of(stages) > rules.max_devices:
        return False
    one_stage = rules.strategy in ("single", "replicas")
    one_device = rules.strategy in ("single", "pipeline")
    return (
        len(stages) >= rules.min_stages
        and (len(stages) == 1 or not one_stage)
        and (all(len(stage.devices) == 1 for stage in stages) or not one_device)
    )


def devices_of(stages: Stages) -> int:
    """How many devices have a stage."""
    return sum(len(stage.devices) for stage in stages)
