"""Random small problems, and all their plans one by one."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace

from planner.problem import (
    BrokerCosts,
    ClientCosts,
    DeviceCosts,
    Link,
    Problem,
    RelayCosts,
    StageChoice,
)
from planner.solver.exact import Form


def device(name: str, segment_ms: tuple[float, ...], **fields: object) -> DeviceCosts:
    """Computing alone costs time, unless a test says otherwise."""
    settings = {"relay": RelayCosts(0.0, 0.0), "base_bytes": 0, **fields}
    return DeviceCosts(name, segment_ms, **settings)  # type: ignore[arg-type]


def problem(devices: list[DeviceCosts], edge_bytes: tuple[int, ...], **fields: object) -> Problem:
    """Weights and activations take nothing, unless a test says otherwise."""
    count = len(edge_bytes) - 1
    settings = {"weight_bytes": (0,) * count, "activation_bytes": (0,) * count, **fields}
    return Problem(tuple(devices), edge_bytes=edge_bytes, **settings)  # type: ignore[arg-type]


def random_problem(generator: random.Random, segments: int, devices: int) -> Problem:
    """Everything that the cost model knows, in proportions in which all of it decides at times."""
    found: list[DeviceCosts] = []
    for index in range(devices):
        if found and generator.random() < 0.4:
            found.append(replace(generator.choice(found), name=f"pi-{index}"))
        else:
            found.append(_random_device(generator, segments, f"pi-{index}"))
    edges = tuple(
        generator.choice([10, 100, generator.randint(1, 5000)]) for _ in range(segments + 1)
    )
    coded = tuple(generator.choice([1, 3]) * size for size in edges)
    given = Problem(
        tuple(found),
        tuple(generator.randint(0, 100) for _ in range(segments)),
        tuple(generator.randint(0, 20) for _ in range(segments)),
        edges,
        broker=BrokerCosts(
            generator.choice([math.inf, 1e6, 1e5]),
            RelayCosts(generator.choice([0.0, 0.2, 2.0]), generator.choice([0.0, 1e-5])),
        ),
        client=ClientCosts(
            RelayCosts(generator.choice([0.0, 0.1, 3.0]), 0.0),
            Link(generator.choice([math.inf, 1e6]), math.inf, 1.0),
        ),
        window_batches=generator.choice([0, 0, 3]),
        edge_work_bytes=generator.choice([None, coded]),
    )
    both = min(given.weight_bytes[0], given.weight_bytes[-1]) if segments > 1 else 0
    return replace(given, shared_bytes=generator.choice([0, both]))


def _random_device(generator: random.Random, segments: int, name: str) -> DeviceCosts:
    slower = generator.uniform(0.5, 4)
    times = tuple(
        generator.choice([0.0, 1.0, 2.0, generator.uniform(0.1, 9)]) * slower
        for _ in range(segments)
    )
    without_packing = generator.choice([0.8, 1.3, 1.3])
    speeds = [math.inf, 1e6, 1e5]
    return DeviceCosts(
        name,
        times,
        RelayCosts(generator.choice([0.0, 0.1, 0.5]), generator.choice([0.0, 1e-6, 1e-5])),
        Link(generator.choice(speeds), generator.choice(speeds), generator.choice([0.0, 1.0])),
        memory_bytes=generator.choice([None, None, generator.randint(100, 600)]),
        base_bytes=50,
        packing_factor=generator.choice([1.0, 1.5, 2.0]),
        unpacked_ms=generator.choice([None, tuple(without_packing * ms for ms in times)]),
    )


def all_plans(given: Problem, form: Form) -> Iterator[tuple[StageChoice, ...]]:
    """Every plan of a form, whether it fits or not."""
    count, names = given.num_segments, [one.name for one in given.devices]
    for stages in range(form.min_stages, count + 1):
        if form.num_stages not in (None, stages):
            continue
        for cuts in itertools.combinations(range(1, count), stages - 1):
            bounds = (0, *cuts, count)
            if form.boundaries not in (None, bounds):
                continue
            for places in itertools.product(range(-1, stages), repeat=len(names)):
                groups = [
                    tuple(n for n, place in zip(names, places, strict=True) if place == stage)
                    for stage in range(stages)
                ]
                most = form.max_devices if form.replicas else 1
                if all(1 <= len(group) <= most for group in groups) and (
                    sum(map(len, groups)) <= form.max_devices
                ):
                    yield tuple(
                        StageChoice(bounds[stage], bounds[stage + 1], groups[stage])
                        for stage in range(stages)
                    )
