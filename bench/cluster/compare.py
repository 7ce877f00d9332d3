"""Plans on the emulated cluster beside what they predict and beside as many whole-model workers."""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cluster.devices import EmulatedDevice
from bench.cluster.measure import DeviceFigures, RunFigures
from bench.cluster.rig import Cluster
from bench.cluster.workers import WorkerRates, median_rates
from contract.plan import Plan, load_plan


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device of a plan. Times in ms, wall time on the device but for ``cpu_ms``.

    ``alone_ms`` is a batch of the stage without messages in the same share: what a prediction of
    computing time should meet. ``compute_ms`` is the engine's wall time while the plan ran, which a
    quota makes uneven. ``cpu_ms`` is all processor time for a batch, at full speed; ``relay_share``
    the part of it that is not the computing thread's. None where nothing was predicted.
    """

    device: str
    stage_index: int
    predicted_compute_ms: float | None
    predicted_relay_ms: float | None
    alone_ms: float
    compute_ms: float
    cpu_ms: float
    relay_share: float
    wait_ms: float
    busy: float
    predicted_memory_bytes: int | None
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One plan: medians over the rounds, ranges as (least, most).

    ``bound`` is what the stages reached alone, without messages and in the same shares, as a share
    of the control: the slowest sets it. ``of_bound`` is what the plan reached of it: its losses to
    messages and to waiting.

    ``error_at_same_speed`` is ``error`` with the machine's own drift divided out: a prediction
    holds for the speed that the devices had while they measured themselves, and a shared machine is
    faster or slower some minutes later, as the control shows. None without a control from then.
    """

    name: str
    folder: str
    strategy: str
    predicted_images_per_s: float | None
    images_per_s: float
    images_per_s_range: tuple[float, float]
    error: float | None
    error_at_same_speed: float | None
    control_images_per_s: float
    of_control: float
    of_control_range: tuple[float, float]
    bound: float
    of_bound: float
    predicted_latency_ms: float | None
    latency_ms_p50: float
    latency_ms_p95: float
    client_ms: float
    broker_ms: float
    retried: int
    lost: int
    devices: tuple[DeviceRow, ...]


def compare(
    cluster: Cluster,
    folders: Sequence[Path],
    whole: Path,
    rounds: int,
    seconds: float,
    window: int | None,
    control_when_profiled: float | None = None,
) -> list[PlanRow]:
    """Run all plans in turn, ``rounds`` times over, and after each one its stages and the control.

    Args:
        folders: plan folders, placed on the cluster's devices.
        whole: folder of a plan of one stage of the same model, for the control.
        window: batches in flight; what a client would choose by itself when None.
        control_when_profiled: images a second of the control while the devices were measured.
    """
    plans = [load_plan(folder) for folder in folders]
    runs: list[list[RunFigures]] = [[] for _ in plans]
    alone: list[list[WorkerRates]] = [[] for _ in plans]
    controls: list[list[WorkerRates]] = [[] for _ in plans]
    with ExitStack() as stack:
        workers = stack.enter_context(cluster.control(load_plan(whole), whole))
        stages = [
            stack.enter_context(cluster.stages_alone(plan, folder))
            for plan, folder in zip(plans, folders, strict=True)
        ]
        for number in range(rounds):
            order = range(len(plans)) if number % 2 == 0 else reversed(range(len(plans)))
            for index in order:
                cluster.publish(plans[index], folders[index])
                runs[index].append(cluster.run(plans[index], seconds, window))
                with cluster.limited():
                    alone[index].append(stages[index].run(seconds / 2))
                    controls[index].append(workers.run(seconds / 2))
    return [
        row(plan, folder, runs[index], alone[index], controls[index], control_when_profiled)
        for index, (plan, folder) in enumerate(zip(plans, folders, strict=True))
    ]


def row(
    plan: Plan,
    folder: Path,
    runs: Sequence[RunFigures],
    alone: Sequence[WorkerRates],
    controls: Sequence[WorkerRates],
    control_when_profiled: float | None = None,
) -> PlanRow:
    """Sum up the rounds of one plan. Each ratio is taken within its round. Pure."""
    rates = [run.images_per_s for run in runs]
    ratios = [run.images_per_s / c.together for run, c in zip(runs, controls, strict=True)]
    measured, control = statistics.median(rates), median_rates(controls)
    predicted = plan.prediction
    bounds = [slowest_stage(plan, rates) for rates in alone]
    bound = statistics.median(b / c.together for b, c in zip(bounds, controls, strict=True))
    of_bound = statistics.median(r.images_per_s / b for r, b in zip(runs, bounds, strict=True))
    error = predicted.images_per_s / measured - 1 if predicted else None
    replicas = max(len(spot.replicas) for spot in plan.placement)
    strategy = (
        ("replicas" if replicas > 1 else "single")
        if plan.num_stages == 1
        else ("mixed" if replicas > 1 else "pipeline")
    )
    return PlanRow(
        name=plan.name,
        folder=str(folder),
        strategy=strategy,
        predicted_images_per_s=predicted.images_per_s if predicted else None,
        images_per_s=measured,
        images_per_s_range=(min(rates), max(rates)),
        error=error,
        error_at_same_speed=(
            None
            if error is None or control_when_profiled is None
            else (1 + error) * control.together / control_when_profiled - 1
        ),
        control_images_per_s=control.together,
        of_control=statistics.median(ratios),
        of_control_range=(min(ratios), max(ratios)),
        bound=bound,
        of_bound=of_bound,
        predicted_latency_ms=predicted.loaded_latency_ms if predicted else None,
        latency_ms_p50=statistics.median(run.latency_ms_p50 for run in runs),
        latency_ms_p95=statistics.median(run.latency_ms_p95 for run in runs),
        client_ms=statistics.median(run.client_ms for run in runs),
        broker_ms=statistics.median(run.broker_ms for run in runs),
        retried=sum(run.retried for run in runs),
        lost=sum(run.lost for run in runs),
        devices=tuple(
            _device_row(
                plan,
                [run.devices[index] for run in runs],
                1e3 * plan.batch_size / statistics.median(a.each[index] for a in alone),
            )
            for index in range(len(runs[0].devices))
        ),
    )


def slowest_stage(plan: Plan, alone: WorkerRates) -> float:
    """Images a second of the slowest stage, from those of its replicas, each alone. Pure."""
    rates = iter(alone.each)
    return min(sum(next(rates) for _ in spot.replicas) for spot in plan.placement)


def _device_row(plan: Plan, figures: Sequence[DeviceFigures], alone_ms: float) -> DeviceRow:
    name = figures[0].device
    predicted = (
        next((d for d in plan.prediction.devices if d.device == name), None)
        if (plan.prediction)
        else None
    )
    used = [figure for figure in figures if figure.batches]
    middle = statistics.median
    return DeviceRow(
        device=name,
        stage_index=figures[0].stage_index,
        predicted_compute_ms=predicted.compute_ms if predicted else None,
        predicted_relay_ms=predicted.relay_ms if predicted else None,
        alone_ms=alone_ms,
        compute_ms=middle(f.compute_ms for f in used) if used else 0.0,
        cpu_ms=middle(f.main_ms + f.others_ms for f in figures),
        relay_share=middle(f.others_ms / (f.main_ms + f.others_ms) for f in used) if used else 0.0,
        wait_ms=middle(f.wait_ms for f in used) if used else 0.0,
        busy=middle(f.busy for f in figures),
        predicted_memory_bytes=predicted.memory_bytes if predicted else None,
        peak_rss_bytes=max(f.peak_rss_bytes for f in figures),
    )


def show(rows: Sequence[PlanRow]) -> None:
    """Print the table."""
    print(
        "plan                 strategy            predicted  measured (range)         error"
        "  same speed   of control (range)     bound  of bound  p50 ms  lost"
    )
    for one in rows:
        low, high = one.images_per_s_range
        least, most = one.of_control_range
        print(
            f"{one.name:20} {one.strategy:18} {_number(one.predicted_images_per_s, 10)}  "
            f"{one.images_per_s:8.2f} ({low:.2f}…{high:.2f})  {_percent(one.error)}  "
            f"{_percent(one.error_at_same_speed):>10}  "
            f"{one.of_control:6.3f} ({least:.3f}…{most:.3f})  {one.bound:6.3f}  "
            f"{one.of_bound:8.3f}  {one.latency_ms_p50:6.0f}  {one.lost:4}"
        )
    print(
        "\nplan                 device  stage  predicted ms  compute ms   CPU ms  of messages  busy"
    )
    for one in rows:
        for device in one.devices:
            print(
                f"{one.name:20} {device.device:6} {device.stage_index:6}  "
                f"{_number(device.predicted_compute_ms, 12)}  {device.alone_ms:8.1f}  "
                f"{device.cpu_ms:6.2f}  {device.relay_share:11.2f}  {device.busy:4.2f}"
            )


def document(rows: Sequence[PlanRow], devices: Sequence[EmulatedDevice]) -> dict[str, object]:
    """The same as one JSON document."""
    return {"devices": [asdict(d) for d in devices], "plans": [asdict(one) for one in rows]}


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.2f'):>{width}}"


def _percent(value: float | None) -> str:
    return f"{'-' if value is None else format(value * 100, '+.1f') + ' %':>8}"
