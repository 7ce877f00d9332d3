"""The answers of `planner/what_if.py` as tables for people, with a bar for every figure."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.simulation.under_load import UnderLoad
from planner.verdict import figure
from planner.what_if import EdgeCodecs, WhatIf
from shardline.console import size
from shardline.plan_table import new_table

BAR_WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉"


def what_if_report(answers: WhatIf) -> Group:
    """Everything, for a terminal of 80 columns or more; nothing is told by colour."""
    parts: list[RenderableType] = [_scaling_table(answers), _codec_table(answers)]
    if answers.edge_codecs.edges:
        parts += [Text(_links(answers.edge_codecs)), Text("")]
    if answers.purchases:
        parts.append(_purchase_table(answers))
    parts += [Text(answers.advice), Text(""), _window_table(answers)]
    parts += _under_load(answers.under_load)
    return Group(*parts)


def bar(value: float, full: float, width: int = BAR_WIDTH) -> str:
    """A bar of at most ``width`` characters, to an eighth of one; ``full`` fills it."""
    eighths = round(max(0.0, min(1.0, value / full if full > 0 else 0.0)) * width * 8)
    if value > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _table(title: str, columns: tuple[str, ...], bar_width: int = BAR_WIDTH) -> Table:
    """Names on the left, figures on the right; the column without a name holds the bars."""
    table = new_table(title)
    for index, column in enumerate(columns):
        is_text = index == 0 or column in ("", "how")
        table.add_column(
            column,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
            min_width=bar_width if column == "" else None,
        )
    return table


def _add(table: Table, *cells: str) -> None:
    """A row of plain text: names and errors may hold what rich takes for a style."""
    table.add_row(*map(Text, cells))


def _scaling_table(answers: WhatIf) -> Table:
    table = _table("what if: number of devices", ("at most", "images/s", "", "how"))
    most = max((row.images_per_s or 0.0 for row in answers.scaling), default=0.0)
    for row in answers.scaling:
        name = f"{row.devices} device{'s' if row.devices > 1 else ''}"
        if row.images_per_s is None:
            _add(table, name, "—", "", row.problem or "")
            continue
        how = str(row.strategy) + ("" if row.used == row.devices else f", {row.used} used")
        _add(table, name, figure(row.images_per_s), bar(row.images_per_s, most), how)
    return table


def _codec_table(answers: WhatIf) -> Table:
    table = _table("what if: codec", ("between stages", "images/s", "", "gain", "how"))
    best = answers.edge_codecs
    most = max([best.images_per_s, *(row.images_per_s for row in answers.codecs)])
    for row in answers.codecs:
        _add(
            table,
            row.codec,
            figure(row.images_per_s),
            bar(row.images_per_s, most),
            _gain(row.gain),
            row.strategy,
        )
    if best.edges:
        _add(
            table,
            "best for each link",
            figure(best.images_per_s),
            bar(best.images_per_s, most),
            _gain(best.gain),
            "",
        )
    return table


def _links(best: EdgeCodecs) -> str:
    """Which link of that plan travels how, and what a batch weighs there."""
    links = (
        f"stage {edge.edge - 1} to {edge.edge} {edge.codec} ({size(edge.bytes_per_batch)})"
        for edge in best.edges
    )
    return f"best for each link: {', '.join(links)}"


def _purchase_table(answers: WhatIf) -> Table:
    table = _table("what if: something bought", ("with", "images/s", "", "gain"))
    most = max(row.images_per_s for row in answers.purchases)
    for row in answers.purchases:
        _add(
            table, row.what, figure(row.images_per_s), bar(row.images_per_s, most), _gain(row.gain)
        )
    return table


def _window_table(answers: WhatIf) -> Table:
    table = _table("what if: batches in flight", ("window", "images/s", "", "median latency"))
    most = max(row.images_per_s for row in answers.windows)
    for row in answers.windows:
        _add(
            table,
            str(row.window),
            figure(row.images_per_s),
            bar(row.images_per_s, most),
            f"{figure(row.latency_ms_p50)} ms",
        )
    return table


def _under_load(load: UnderLoad) -> list[RenderableType]:
    narrow = BAR_WIDTH // 2
    table = _table(
        "the chosen plan under load: share of the time at work",
        ("device", "stage", "share", "processor", "", "link up", "down"),
        narrow,
    )
    for device in load.devices:
        _add(
            table,
            device.device,
            str(device.stage_index),
            f"{device.share:.0%}",
            f"{device.processor:.0%}",
            bar(device.processor, 1.0, narrow),
            f"{device.up:.0%}",
            f"{device.down:.0%}",
        )
    _add(table, "broker", "", "", f"{load.broker:.0%}", bar(load.broker, 1.0, narrow), "", "")
    _add(
        table,
        "client",
        "",
        "",
        f"{load.client:.0%}",
        bar(load.client, 1.0, narrow),
        f"{load.client_up:.0%}",
        f"{load.client_down:.0%}",
    )
    return [
        table,
        Text(
            f"simulated with {load.window} batches in flight and computing times that vary by "
            f"{load.jitter:.0%}: {figure(load.images_per_s)} images/s; latency of a batch "
            f"{figure(load.latency_ms_p50)} ms (median), {figure(load.latency_ms_p95)} ms (95 %), "
            f"{figure(load.latency_ms_p99)} ms (99 %)"
        ),
    ]


def _gain(gain: float) -> str:
    """In percent, with a sign; less than half a percent is none."""
    return "·" if abs(gain) < 0.005 else f"{gain:+.0%}"
