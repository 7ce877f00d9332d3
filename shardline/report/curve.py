"""The cut-point curve: where the time goes, and what a cut would send at each legal place.

Above, the time summed up over the segments; below, the bytes of a batch at every legal cut on a
logarithmic scale. Both share the horizontal axis: how many segments lie before the cut.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from contract.plan import Plan
from shardline import figures
from shardline.console import size
from shardline.report.pipeline_view import PipelineView
from shardline.report.svg import Drawing, Number, fit, width_of

LEFT, RIGHT, ROW = 66, 14, 22
TIME_HEIGHT, BYTES_HEIGHT, BETWEEN = 210, 120, 52
TITLE = "The cut-point curve"


@dataclass(frozen=True, slots=True)
class _Axis:
    """A straight scale: ``low`` at pixel ``start``, ``high`` at pixel ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def has_curve(plan: Plan) -> bool:
    """Whether the plan's segments are there and are those that its stages are made of."""
    return len(plan.segments) == plan.stages[-1].end_segment


def draw_curve(plan: Plan, view: PipelineView, name: str, width: Number = 1000) -> str:
    """The curve of a plan for which :func:`has_curve` holds; ``view`` tells what each cut sends."""
    picture = Drawing(name, TITLE, _describe(plan), width)
    count = len(plan.segments)
    across = _Axis(0, count, LEFT, width - RIGHT)
    labels = _labels(plan, view, across)
    top = 8 + ROW * (1 + max((label.row for label in labels), default=-1)) + 26
    middle = top + TIME_HEIGHT + BETWEEN
    bottom = middle + BYTES_HEIGHT
    _stage_bands(picture, plan, across, top, bottom)
    _time(picture, plan, across, top)
    for label in labels:
        picture.line(label.x, 10 + ROW * (label.row + 0.5), label.x, bottom, "chosen-line")
    _bytes(picture, plan, view, across, middle)
    for label in labels:
        _label(picture, label)
    for tick in _whole_ticks(count, 6 if width < 500 else 12):
        picture.text(across.at(tick), bottom + 19, str(tick), "tick", "middle")
    picture.text(
        (LEFT + width - RIGHT) / 2, bottom + 40, "segments before the cut", "tick", "middle"
    )
    return picture.finish(bottom + 50)


def _describe(plan: Plan) -> str:
    total = sum(segment.ms for segment in plan.segments)
    cuts = ", ".join(stage.outputs[0].name for stage in plan.stages[:-1]) or "none"
    return (
        f"{len(plan.segments)} segments take {figures.ms(total)} in all; "
        f"{len(plan.segments) - 1} legal cuts, chosen: {cuts}."
    )


def _stage_bands(picture: Drawing, plan: Plan, across: _Axis, top: float, bottom: float) -> None:
    for stage in plan.stages:
        start, end = across.at(stage.first_segment), across.at(stage.end_segment)
        kind = "band odd" if stage.stage_index % 2 else "band even"
        picture.rect(start, top, end - start, bottom - top, kind)
        words = f"stage {stage.stage_index}"
        if width_of(words, 13) > end - start - 4:
            words = str(stage.stage_index)
        picture.text((start + end) / 2, top - 8, words, "tick strong", "middle")


def _time(picture: Drawing, plan: Plan, across: _Axis, top: float) -> None:
    sums = [0.0, *itertools.accumulate(segment.ms for segment in plan.segments)]
    ticks = _round_ticks(sums[-1])
    up = _Axis(0, ticks[-1] or 1.0, top + TIME_HEIGHT, top)
    for tick in ticks:
        picture.line(LEFT, up.at(tick), across.end, up.at(tick), "grid")
        words = f"{tick / 1e3:g} s" if ticks[-1] >= 2000 else f"{tick:g} ms"
        picture.text(LEFT - 8, up.at(tick) + 4, words, "tick", "end")
    picture.text(LEFT + 6, top + 18, "time so far, one batch", "small strong halo")
    points = [(across.at(index), up.at(ms)) for index, ms in enumerate(sums)]
    steps: list[str | Number] = ["M", *points[0]]
    for point in points[1:]:
        steps += ["L", *point]
    picture.path(steps, "curve")
    chosen = {stage.first_segment for stage in plan.stages[1:]}
    for index, (x, y) in enumerate(points[1:-1], start=1):
        if index in chosen:
            picture.path(("M", x - 6, y, "L", x, y - 6, x + 6, y, x, y + 6, "Z"), "chosen-mark")
        elif len(points) <= 160:
            picture.path(("M", x, y, "h", 0), "legal-mark")


def _bytes(picture: Drawing, plan: Plan, view: PipelineView, across: _Axis, top: float) -> None:
    """Bars on a logarithmic scale; of a chosen cut the stronger part is what its codec leaves."""
    sizes = [segment.output_bytes for segment in plan.segments[:-1]]
    sent = {stage.first_segment: view.edges[stage.stage_index].size_bytes for stage in plan.stages}
    known = [count for count in (*sizes, *sent.values()) if count > 0] or [1]
    low = math.floor(math.log10(min(known)))
    high = max(math.log10(max(known)) + 0.15, low + 1)
    up = _Axis(low, high, top + BYTES_HEIGHT, top)
    picture.text(LEFT + 6, top - 12, "bytes of a batch at each legal cut", "small strong halo")
    step = 1 if high - low <= 4 else 2
    for power in range(low, math.floor(high) + 1, step):
        picture.line(LEFT, up.at(power), across.end, up.at(power), "grid")
        picture.text(LEFT - 8, up.at(power) + 4, size(10**power).replace(".0", ""), "tick", "end")
    pitch = (across.end - across.start) / len(plan.segments)
    bar = min(18.0, max(1.0, pitch * 0.55))
    for index, count in enumerate(sizes, start=1):
        if count <= 0:
            continue
        x, chosen = across.at(index) - bar / 2, index in sent
        picture.open("chosen" if chosen else "", f"{plan.segments[index - 1].cut}: {size(count)}")
        y = up.at(math.log10(count))
        picture.rect(x, y, bar, top + BYTES_HEIGHT - y, "bytes")
        if chosen and sent[index] > 0:
            y = up.at(math.log10(min(count, sent[index])))
            picture.rect(x, y, bar, top + BYTES_HEIGHT - y, "bytes sent")
        picture.close()


@dataclass(frozen=True, slots=True)
class _Label:
    words: str
    x: float
    left: float
    width: float
    row: int


def _labels(plan: Plan, view: PipelineView, across: _Axis) -> list[_Label]:
    """The names of the chosen cuts, in as few rows as keep them apart."""
    ends: list[float] = []
    found = []
    for stage in plan.stages[:-1]:
        edge = view.edges[stage.stage_index + 1]
        before = plan.segments[stage.end_segment - 1].output_bytes
        sends = size(before)
        if edge.size_bytes < before:
            sends += f" → {size(edge.size_bytes)} {edge.codec}"
        x = across.at(stage.end_segment)
        most = across.end - 8 - width_of(f" · {sends}", 13) - 16
        words = f"{fit(stage.outputs[0].name, min(most, 260), 13)} · {sends}"
        width = width_of(words, 13) + 16
        left = max(4.0, min(x - width / 2, across.end - width))
        row = next((i for i, end in enumerate(ends) if end + 8 < left), len(ends))
        ends[row : row + 1] = [left + width]
        found.append(_Label(words, x, left, width, row))
    return found


def _label(picture: Drawing, label: _Label) -> None:
    top = 8 + ROW * label.row
    picture.rect(label.left, top, label.width, ROW - 3, "chosen-label", 9)
    picture.text(label.left + label.width / 2, top + 14, label.words, "chosen-words", "middle")


def _round_ticks(highest: float) -> list[float]:
    """0 and round steps up to at least ``highest``: about five of them."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    return [step * index for index in range(math.ceil(highest / step - 1e-9) + 1)]


def _whole_ticks(count: int, most: int) -> Sequence[int]:
    step = next(
        s
        for s in itertools.chain((1, 2, 5), (10 * k for k in itertools.count(1)))
        if count / s <= most
    )
    return range(0, count + 1, step)
