"""The stages as rows of a table: how busy, how long for a batch, who serves them. Pure."""

from collections.abc import Sequence
from statistics import fmean

from rich.text import Text

from client.watch.loads import DeviceLoad, device_loads
from client.watch.view import ClusterView
from contract.fleet import is_live
from contract.metrics import StageMetrics
from shardline import figures
from shardline.top import amounts
from shardline.top.drawing import (
    BAD,
    DIM,
    WARN,
    Column,
    bar,
    heading,
    load_style,
    plain,
    row,
)
from shardline.top.sections import shown_clients

NO_DEVICE = plain("no ready device", BAD)


def stages(view: ClusterView, rows: int, width: int) -> list[Text]:
    """A heading, and one line for each stage; the busiest where there are more than ``rows``."""
    if view.plan is None:
        return []
    loads = device_loads(view)
    measured = _measured(view)
    busy = {
        index: _busy([x for x in loads if x.stage_index == index], measured.get(index))
        for index in range(view.plan.num_stages)
    }
    indices = sorted(busy, key=lambda i: -(busy[i] or 0.0))[:rows]
    bar_width = max(6, min(24, width - 58))
    columns = [
        Column("st", 3),
        Column("busy", bar_width, is_left=True),
        Column("", 4),
        Column("compute", 8),
        Column("wait", 8),
        Column("bubble", 7),
        Column("out/s", 6),
    ]
    columns.append(
        Column("devices", max(0, width - sum(c.width + 1 for c in columns)), is_left=True)
    )
    found = [heading(columns)]
    for index in sorted(indices):
        share, stage = busy[index], measured.get(index)
        here = [x for x in loads if x.stage_index == index]
        missing = plain("not heard", WARN) if _is_ready(view, index) else NO_DEVICE
        found.append(
            row(
                columns,
                [
                    str(index),
                    bar(share or 0.0, bar_width) if here else missing,
                    plain(amounts.percent(share), load_style(share or 0.0)) if here else "",
                    amounts.ms(stage.compute_ms_p50 if stage else _compute_ms(here)),
                    amounts.ms(stage.wait_ms_p50 if stage else None),
                    figures.NONE if stage is None else f"{min(stage.bubble_s, 999):.2f} s",
                    amounts.short(sum(x.bytes_out_per_s for x in here)),
                    "+".join(view.stage_devices(index)),
                ],
            )
        )
    if view.plan.num_stages > rows:
        found.append(plain(f"  {view.plan.num_stages - rows} stages that are less busy", DIM))
    return found


def _is_ready(view: ClusterView, index: int) -> bool:
    """Whether some device says that it serves the stage, heard or not."""
    plan, devices = view.plan, map(view.device, view.stage_devices(index))
    return plan is not None and any(d is not None and is_live(d.status, plan) for d in devices)


def _measured(view: ClusterView) -> dict[int, StageMetrics]:
    """The stages as the quickest client sees them."""
    clients = shown_clients(view)
    if not clients or not clients[0].is_fresh or view.plan is None:
        return {}
    metrics = clients[0].metrics
    if metrics.plan_id != view.plan.plan_id:
        return {}
    return {stage.stage_index: stage for stage in metrics.stages}


def _busy(loads: Sequence[DeviceLoad], stage: StageMetrics | None) -> float | None:
    """What the devices say, who know all clients; else what one client saw."""
    if loads:
        return fmean(load.computing for load in loads)
    return None if stage is None else stage.utilisation


def _compute_ms(loads: Sequence[DeviceLoad]) -> float | None:
    known = [load.compute_ms for load in loads if load.compute_ms is not None]
    return fmean(known) if known else None
