"""What a solution will do, in a plan's words, by the cost model and the simulation."""

import math
from collections.abc import Iterator, Sequence

from contract.plan import Codec, Replica
from contract.prediction import DevicePrediction, EdgePrediction, Prediction
from planner.cost_model import (
    batches_per_s,
    bottleneck,
    broker_rate,
    client_rate,
    cut_edges,
    latency_ms,
    transfer_ms,
)
from planner.problem import Problem, Solution, StageChoice
from planner.simulation.routing import costs_on, shares, speeds
from planner.simulation.simulate import simulate
from planner.simulation.window import enough_window


def predict(
    problem: Problem, solution: Solution, window: int | None, codecs: Sequence[Codec], based_on: str
) -> Prediction:
    """A plan's expected rate, latency and memory.

    Args:
        problem: what everything costs.
        solution: the stages and their bound.
        window: batches in flight; None for as many as the plan needs to reach its rate.
        codecs: how each of the problem's edges travels, one more than there are segments.
        based_on: where the figures come from, in words.

    Raises:
        PartitionError: a stage does not fit one of its devices.
    """
    stages, edges = solution.stages, cut_edges(solution.stages)
    if len(codecs) != len(problem.edge_bytes):
        raise ValueError(f"{len(problem.edge_bytes)} edges have as many codecs, got {len(codecs)}")
    rate = batches_per_s(problem, stages)
    devices = tuple(
        device
        for index, stage in enumerate(stages)
        for device in _devices(problem, index, stage, rate)
    )
    loaded = simulate(problem, stages, window) if window else enough_window(problem, stages)
    bytes_per_batch = sum(problem.edge_bytes[edge] for edge in edges)
    return Prediction(
        images_per_s=rate * problem.batch_size,
        latency_ms=latency_ms(problem, stages),
        loaded_latency_ms=loaded.latency_ms_p50,
        window=loaded.window,
        bottleneck=bottleneck(problem, stages),
        bound_images_per_s=_bound(problem, solution, rate) * problem.batch_size,
        broker_bytes_per_image=bytes_per_batch / problem.batch_size,
        devices=devices,
        edges=tuple(
            EdgePrediction(
                edge=index,
                codec=codecs[edge],
                bytes_per_batch=problem.edge_bytes[edge],
                transfer_ms=_mean_transfer_ms(problem, stages, index),
                broker_ms=problem.broker.edge_ms(problem.edge_bytes[edge]),
            )
            for index, edge in enumerate(edges)
        ),
        based_on=based_on,
    )


def replicas(problem: Problem, solution: Solution) -> tuple[tuple[Replica, ...], ...]:
    """The devices of every stage as a plan names them; a stage's fastest has the speed 1.0.

    Raises:
        PartitionError: a stage does not fit one of its devices.
    """
    placed = []
    for stage in solution.stages:
        costs, of_each = costs_on(problem, stage), speeds(problem, stage)
        placed.append(
            tuple(
                Replica(device=name, speed=of_each[name], prepack=costs[name].prepack)
                for name in stage.devices
            )
        )
    return tuple(placed)


def _devices(
    problem: Problem, index: int, stage: StageChoice, rate: float
) -> Iterator[DevicePrediction]:
    costs, share_of = costs_on(problem, stage), shares(problem, stage)
    for name in stage.devices:
        its = costs[name]
        yield DevicePrediction(
            device=name,
            stage_index=index,
            share=share_of[name],
            compute_ms=its.compute_ms,
            relay_ms=its.relay_ms,
            transfer_ms=max(its.down_ms, its.up_ms),
            utilisation=rate * share_of[name] * its.busy_ms / 1e3,
            memory_bytes=its.memory_bytes,
            memory_limit_bytes=problem.device(name).memory_bytes,
            prepack=its.prepack,
        )


def _mean_transfer_ms(problem: Problem, stages: Sequence[StageChoice], index: int) -> float:
    """Over all pairs of sender and receiver, each as often as batches take that way."""
    edge = cut_edges(stages)[index]
    client: dict[str | None, float] = {None: 1.0}
    senders = client if index == 0 else {**shares(problem, stages[index - 1])}
    receivers = client if index == len(stages) else {**shares(problem, stages[index])}
    return sum(
        sent * received * transfer_ms(problem, edge, sender, receiver)
        for sender, sent in senders.items()
        for receiver, received in receivers.items()
    )


def _bound(problem: Problem, solution: Solution, rate: float) -> float:
    """At least the batches a second of any plan.

    A solution for the least latency carries a bound of latencies, and a quick method may have
    none: then what no plan can pass.
    """
    ceiling = max(rate, rate_ceiling(problem))
    if not math.isclose(solution.value, rate, rel_tol=1e-6):
        return ceiling
    return min(max(solution.bound, rate), ceiling)


def rate_ceiling(problem: Problem) -> float:
    """Batches a second that no plan can pass, whatever fits where.

    The client and the broker carry every input and result; and if a segment is worth its time on
    the device that is quickest at it, no device can earn more than its own best segment pays.
    """
    outer = (0, problem.num_segments)
    times: list[tuple[float, ...]] = [
        device.segment_ms
        if device.unpacked_ms is None
        else tuple(map(min, device.segment_ms, device.unpacked_ms))
        for device in problem.devices
    ]
    quickest: list[float] = [min(column) for column in zip(*times, strict=True)]
    earned_per_ms = sum(
        max(
            (worth / max(ms, 1e-9) for worth, ms in zip(quickest, row, strict=True)),
            default=0.0,
        )
        for row in times
    )
    computing = 1e3 * earned_per_ms / max(sum(quickest), 1e-9)
    return min(computing, client_rate(problem), broker_rate(problem, outer))
