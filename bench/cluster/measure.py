"""What a run of a plan says: rates, latencies, and where the devices' time went. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cluster.devices import Usage
from client.batch import BatchResult


@dataclass(frozen=True, slots=True)
class Arrival:
    """A result, and when it came, in seconds of one clock."""

    at_s: float
    result: BatchResult


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One device while a plan ran.

    ``compute_ms``, ``wait_ms`` and ``publish_ms`` are medians from the batches' traces, in wall
    time on that device: in its engine, from received to started, from finished to handed over.
    ``main_ms`` and ``others_ms`` are processor time for each batch, at full speed: of the thread
    that computes, and of those that carry messages. ``busy`` is the share of its quota that it
    used. Memory in bytes. All times are 0 where it ran no batch.
    """

    device: str
    stage_index: int
    batches: int
    compute_ms: float
    wait_ms: float
    publish_ms: float
    main_ms: float
    others_ms: float
    switches: float
    busy: float
    rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One run of a plan: images a second, latencies in ms, processor time, devices, losses."""

    images_per_s: float
    batches: int
    seconds: float
    latency_ms_p50: float
    latency_ms_p95: float
    client_ms: float
    broker_ms: float
    devices: tuple[DeviceFigures, ...]
    retried: int
    lost: int


def rate(arrivals: Sequence[Arrival], began_s: float, images: int) -> tuple[float, float]:
    """Images a second from the first result after ``began_s`` to the last, and that time.

    Counts whole intervals between results, so that a slow plan loses nothing at either end.

    Raises:
        ValueError: fewer than three results came.
    """
    times = [arrival.at_s for arrival in arrivals if arrival.at_s >= began_s]
    if len(times) < 3:
        raise ValueError(f"{len(times)} results in the measured time: measure for longer")
    seconds = times[-1] - times[0]
    return (len(times) - 1) * images / seconds, seconds


def device_figures(
    device: str,
    stage_index: int,
    results: Sequence[BatchResult],
    used: tuple[Usage, Usage],
    elapsed_s: float,
    quota: float,
    memory: tuple[int, int],
) -> DeviceFigures:
    """Sum up one device from the traces of the batches that it ran and its usage around them."""
    hops = [result.hops[stage_index] for result in results]
    before, after = used
    count = len(hops) or math.inf
    return DeviceFigures(
        device=device,
        stage_index=stage_index,
        batches=len(hops),
        compute_ms=_median([hop.finished_us - hop.started_us for hop in hops]) / 1e3,
        wait_ms=_median([hop.started_us - hop.received_us for hop in hops]) / 1e3,
        publish_ms=_median([hop.sent_us - hop.finished_us for hop in hops]) / 1e3,
        main_ms=(after.main_s - before.main_s) / count * 1e3,
        others_ms=(after.others_s - before.others_s) / count * 1e3,
        switches=(after.switches - before.switches) / count,
        busy=(after.cpu_s - before.cpu_s) / elapsed_s / quota,
        rss_bytes=memory[0],
        peak_rss_bytes=memory[1],
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
