"""The devices as rows of a table: who they are, how busy, how full, how warm. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from client.watch.condition import Condition, condition_of, is_fresh
from client.watch.view import ClusterView, DeviceView
from contract.metrics import EARLIER, DeviceMetrics
from contract.plan import Plan
from shardline import figures
from shardline.figures import NONE
from shardline.top import amounts
from shardline.top.drawing import (
    ACCENT,
    BAD,
    DIM,
    GOOD,
    WARN,
    Column,
    cut,
    heading,
    load_style,
    plain,
    row,
)

HOT_CELSIUS = 80.0
"""From here on a Raspberry Pi slows itself down (raspberrypi.com, "Frequency management and thermal
control")."""
WIDE = 110
LEAST_NAME = 10
_LOUD = frozenset({Condition.OFFLINE, Condition.FAILED})
_STYLES = {
    Condition.OFFLINE: BAD,
    Condition.STOPPED: WARN,
    Condition.SILENT: BAD,
    Condition.FAILED: BAD,
    Condition.UNSEEN: BAD,
    Condition.LOADING: WARN,
    Condition.READY: GOOD,
    Condition.IDLE: DIM,
}
_FLAGS = {
    "under_voltage": "volt",
    "frequency_capped": "freq",
    "throttled": "slow",
    "soft_temperature_limit": "warm",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One device of the table. ``device`` is None where the plan names one that nobody heard of."""

    name: str
    stage_index: int | None
    device: DeviceView | None

    @property
    def metrics(self) -> DeviceMetrics | None:
        """Its figures, where they mean anything: those of a device that has gone do not."""
        return self.device.metrics if self.device is not None and self.device.is_online else None


def rows(view: ClusterView) -> list[Row]:
    """Every device that was heard of or that the plan names."""
    names = {device.name for device in view.devices}
    if view.plan is not None:
        names |= {replica.device for place in view.plan.placement for replica in place.replicas}
    return [
        Row(name, _stage_of(view.plan, name, view.device(name)), view.device(name))
        for name in sorted(names)
    ]


def _stage_of(plan: Plan | None, name: str, device: DeviceView | None) -> int | None:
    stage = plan.stage_of(name) if plan is not None else None
    if stage is not None:
        return stage.stage_index
    return device.status.stage_index if device is not None and device.status is not None else None


Order = Callable[[Row], tuple[float | str, ...]]
ORDERS: dict[str, Order] = {
    "stage": lambda r: (float("inf") if r.stage_index is None else r.stage_index, r.name),
    "busy": lambda r: (-(r.metrics.utilisation if r.metrics else -1.0), r.name),
    "memory": lambda r: (
        r.metrics.memory_available_bytes if r.metrics else float("inf"),
        r.name,
    ),
    "name": lambda r: (r.name,),
}
"""Ways to sort the devices: by stage, the busiest first, the least free memory first, by name."""


def state(row_of: Row, view: ClusterView) -> tuple[str, str]:
    """In one word how a device is, and its style."""
    device = row_of.device
    age_s = None if device is None else device.metrics_age_s
    condition = condition_of(device, view.plan, fresh=is_fresh(view, age_s))
    style = _STYLES[condition]
    if condition is Condition.SILENT and age_s is not None:
        return f"{condition} {amounts.age(age_s)}", style
    # Without colours the worst must stand out, too.
    return condition.upper() if condition in _LOUD else condition.value, style


def flags(metrics: DeviceMetrics) -> tuple[str, str]:
    """What the board says of its power and heat, those of now first, and its style."""
    raised = metrics.throttled or ()
    now = [flag for flag in raised if not flag.endswith(EARLIER)]
    past = [flag.removesuffix(EARLIER) for flag in raised if flag.endswith(EARLIER)]
    words = [_FLAGS.get(flag, flag) for flag in now]
    words += [f"({_FLAGS.get(flag, flag)})" for flag in past if flag not in now]
    return " ".join(words), BAD if now else DIM


def table(view: ClusterView, shown: Sequence[Row], width: int) -> list[Text]:
    """The heading, and one line for each device that is shown."""
    columns = _columns(shown, width)
    return [heading(columns), *(_line(columns, view, one) for one in shown)]


def _columns(shown: Sequence[Row], width: int) -> list[Column]:
    is_wide = width >= WIDE
    columns = [
        Column("state", 10, is_left=True),
        Column("st", 3),
        Column("busy", 4),
        Column("queue" if is_wide else "q", 5 if is_wide else 2),
    ]
    if is_wide:
        columns += [Column("compute", 8), Column(_rate_heading(shown), 8)]
    columns += [
        Column("cpu", 5),
        Column("rss", 5),
        Column("free", 5),
        Column("°C", 3),
        Column("in/s", 5),
        Column("out/s", 5),
        Column("rec", 3),
    ]
    rest = width - sum(column.width + 1 for column in columns) - 1
    longest = max((len(one.name) for one in shown), default=0)
    said = max((len(flags(one.metrics)[0]) for one in shown if one.metrics), default=0)
    name = max(6, min(longest, max(LEAST_NAME, rest - max(said, len("flags")))))
    return [
        Column("device", name, is_left=True),
        *columns,
        Column("flags", max(0, rest - name), is_left=True),
    ]


def _rate_heading(shown: Sequence[Row]) -> str:
    is_of_texts = any(one.metrics and one.metrics.tokens_per_s is not None for one in shown)
    return "tokens/s" if is_of_texts else "images/s"


def _line(columns: Sequence[Column], view: ClusterView, one: Row) -> Text:
    word, style = state(one, view)
    cells: dict[str, Text | str] = {
        "device": cut(one.name, columns[0].width),
        "state": plain(word, style),
        "st": NONE if one.stage_index is None else str(one.stage_index),
    }
    metrics = one.metrics
    is_stale = one.device is not None and not one.device.is_fresh
    if metrics is not None:
        cells |= _figures(metrics)
    error = one.device.status.error if one.device is not None and one.device.status else None
    if error:
        cells["flags"] = plain(error, BAD if word == "FAILED" else DIM)
    line = row(columns, [cells.get(column.title, "") for column in columns])
    if is_stale:
        line.stylize(DIM, columns[0].width + columns[1].width + 2)
    return line


def _figures(metrics: DeviceMetrics) -> dict[str, Text | str]:
    warm = metrics.temperature_celsius
    queue = amounts.short(metrics.queue_depth)
    text, style = flags(metrics)
    return {
        "busy": plain(amounts.percent(metrics.utilisation), load_style(metrics.utilisation)),
        "q": queue,
        "queue": queue,
        "compute": amounts.ms(metrics.compute_ms_mean),
        "images/s": amounts.short(metrics.images_per_s),
        "tokens/s": NONE if metrics.tokens_per_s is None else figures.rate(metrics.tokens_per_s),
        "cpu": f"{min(metrics.cpu_percent, 9999):.0f}%",
        "rss": amounts.short(metrics.rss_bytes),
        "free": amounts.short(metrics.memory_available_bytes),
        "°C": NONE
        if warm is None
        else plain(f"{min(warm, 999):.0f}", BAD if warm >= HOT_CELSIUS else ""),
        "in/s": plain(amounts.short(metrics.bytes_in_per_s), ACCENT),
        "out/s": plain(amounts.short(metrics.bytes_out_per_s), ACCENT),
        "rec": amounts.short(metrics.reconnects_total),
        "flags": plain(text, style),
    }
