"""A chosen plan under load, by the simulation, as a document."""

from pydantic import Field

from contract.frozen import FrozenModel
from planner.problem import Problem, Solution
from planner.simulation.simulate import Simulation, simulate
from planner.simulation.window import enough_window

JITTER = 0.05
"""Coefficient of variation of computing times where nobody measured it: two runs of the same work
on one machine differ by so much."""
BATCHES_FOR_EACH = (1, 2, 3, 4, 8)
"""The windows looked at, for each device; the client's default is 2."""


class DeviceUse(FrozenModel):
    """The share of the time that a device's processor and both directions of its link work."""

    device: str
    stage_index: int = Field(ge=0)
    share: float
    processor: float
    up: float
    down: float


class WindowRate(FrozenModel):
    """What the chosen plan does with so many batches in flight, if computing times never vary."""

    window: int = Field(gt=0)
    images_per_s: float
    latency_ms_p50: float


class UnderLoad(FrozenModel):
    """The chosen plan by the simulation, with ``window`` batches in flight."""

    window: int
    jitter: float
    images_per_s: float
    latency_ms_p50: float
    latency_ms_p95: float
    latency_ms_p99: float
    devices: tuple[DeviceUse, ...]
    broker: float
    client: float
    client_up: float
    client_down: float


def under_load(
    problem: Problem, solution: Solution, window: int | None, jitter: float = JITTER
) -> UnderLoad:
    """Percentiles of the latency and the utilisation of everything, by the simulation.

    Raises:
        PartitionError: a stage does not fit one of its devices.
    """
    stages = solution.stages
    window = window or enough_window(problem, stages).window
    seen = simulate(problem, stages, window, jitter=jitter)
    return UnderLoad(
        window=seen.window,
        jitter=jitter,
        images_per_s=seen.batches_per_s * problem.batch_size,
        latency_ms_p50=seen.latency_ms_p50,
        latency_ms_p95=seen.latency_ms_p95,
        latency_ms_p99=seen.latency_ms_p99,
        devices=tuple(
            _device_use(seen, name, index)
            for index, stage in enumerate(stages)
            for name in stage.devices
        ),
        broker=seen.broker.utilisation,
        client=seen.client.utilisation,
        client_up=seen.client_up.utilisation,
        client_down=seen.client_down.utilisation,
    )


def _device_use(seen: Simulation, name: str, stage_index: int) -> DeviceUse:
    load = seen.devices[name]
    return DeviceUse(
        device=name,
        stage_index=stage_index,
        share=load.share,
        processor=load.processor.utilisation,
        up=load.up.utilisation,
        down=load.down.utilisation,
    )


def window_rates(problem: Problem, solution: Solution) -> tuple[WindowRate, ...]:
    """What more batches in flight would give: up to eight for each device, and one in all.

    Raises:
        PartitionError: a stage does not fit one of its devices.
    """
    devices = sum(len(stage.devices) for stage in solution.stages)
    rows = []
    windows = {problem.possible_window(devices * each) for each in BATCHES_FOR_EACH}
    for window in sorted({1, *windows}):
        seen = simulate(problem, solution.stages, window, batches=200)
        rows.append(
            WindowRate(
                window=window,
                images_per_s=seen.batches_per_s * problem.batch_size,
                latency_ms_p50=seen.latency_ms_p50,
            )
        )
    return tuple(rows)
