"""The pipeline drawn: stages in a row or one below the other, arrows through the broker.

An arrow is as thick as its edge's bytes. The slowest part is framed and says so.
"""

from collections.abc import Sequence

from shardline import figures
from shardline.console import size
from shardline.report.pipeline_view import EdgeView, PipelineView, StageView
from shardline.report.stage_box import draw_stage, draw_tag, stage_height
from shardline.report.svg import Drawing, Number

MOST_ACROSS = 4
"""More stages than these side by side would be too narrow for their words: another row."""

WIDEST_ARROW, THINNEST_ARROW = 16.0, 1.6
CLIENT_WIDTH, CLIENT_HEIGHT = 96, 70
TITLE = "The pipeline"


def draw_across(view: PipelineView, name: str, width: Number = 1000) -> str:
    """The stages from left to right above the broker, in rows of at most ``MOST_ACROSS``."""
    picture = _begin(view, name, width)
    rows = -(-len(view.stages) // MOST_ACROSS)
    per_row = -(-len(view.stages) // rows)
    top = 16.0
    for first in range(0, len(view.stages), per_row):
        last = first + per_row >= len(view.stages)
        top = _row(picture, view, view.stages[first : first + per_row], top, per_row, last) + 28
    return picture.finish(top - 25)


def _row(
    picture: Drawing,
    view: PipelineView,
    stages: Sequence[StageView],
    top: float,
    per_row: int,
    last: bool,
) -> float:
    """One row and the broker below it, which is the same in all; returns where it ends."""
    margin = 3
    free = picture.width - 2 * margin - 2 * CLIENT_WIDTH
    column = min(270.0, (free - 24 * (per_row + 1)) / per_row)
    gap = (free - column * per_row) / (per_row + 1)
    floor = top + max(stage_height(stage) for stage in stages)
    band = floor + 44
    lefts = [float(margin)]
    widths = [float(CLIENT_WIDTH), *[column] * len(stages), float(CLIENT_WIDTH)]
    for before in widths[:-1]:
        lefts.append(lefts[-1] + before + gap)
    _broker(picture, view, margin, band, picture.width - 2 * margin, 104)
    picture.text(margin + 12, band + 92, _broker_words(view), "small")
    first = stages[0].spec.stage_index
    for place, edge in enumerate(view.edges[first : first + len(stages) + 1]):
        sender = lefts[place] + widths[place] - 30
        receiver = lefts[place + 1] + 30
        thick = _thickness(view, edge)
        _open_edge(picture, edge)
        tip = floor + _tip(thick)
        steps = ("M", sender, floor, "V", band + 20, "H", receiver, "V", tip)
        picture.path(steps, "arrow", thick)
        _arrow_head(picture, receiver, floor, 0, thick)
        middle = (sender + receiver) / 2
        for line, words in enumerate(_edge_words(edge)):
            kind = "small strong" if line == 0 else "small"
            picture.text(middle, band + 50 + 17 * line, words, kind, "middle")
        picture.close()
    end = floor - CLIENT_HEIGHT
    if first == 0:
        _client(picture, view, lefts[0], end, CLIENT_WIDTH, "sends inputs")
    else:
        _elsewhere(picture, lefts[0], end, f"Stage {first - 1}", "row above")
    if last:
        _client(picture, view, lefts[-1], end, CLIENT_WIDTH, "takes results")
    else:
        _elsewhere(picture, lefts[-1], end, f"Stage {first + len(stages)}", "row below")
    for stage, left in zip(stages, lefts[1:-1], strict=True):
        draw_stage(picture, view, stage, left, floor - stage_height(stage), column)
    return band + 104


def draw_down(view: PipelineView, name: str, width: Number = 360) -> str:
    """The stages from top to bottom beside the broker: for a narrow page."""
    picture = _begin(view, name, width)
    left, band, top, between = 76, 46, 6.0, 62
    boxes: list[tuple[float, float]] = []
    heights = [54, *(stage_height(stage) for stage in view.stages), 54]
    for height in heights:
        boxes.append((top, top + height))
        top += height + between
    bottom = top - between
    _broker(picture, view, 2, 2, band, bottom + 2)
    picture.text(21, bottom / 2, "MQTT broker", "label", "middle", turn=-90)
    for edge in view.edges:
        sender = boxes[edge.index][1] - 18
        receiver = boxes[edge.index + 1][0] + 18
        thick = _thickness(view, edge)
        _open_edge(picture, edge)
        steps = ("M", left, sender, "H", band - 11, "V", receiver, "H", left - _tip(thick))
        picture.path(steps, "arrow", thick)
        _arrow_head(picture, left, receiver, 90, thick)
        first, second = _edge_words(edge)
        middle = (boxes[edge.index][1] + boxes[edge.index + 1][0]) / 2
        picture.text(left + 10, middle - 3, first, "small strong")
        picture.text(left + 10, middle + 14, second, "small")
        picture.close()
    for index, words in ((0, "sends inputs"), (-1, "takes results")):
        _client(picture, view, left, boxes[index][0], width - left - 3, words)
    for stage, (upper, _) in zip(view.stages, boxes[1:-1], strict=True):
        draw_stage(picture, view, stage, left, upper, width - left - 3)
    return picture.finish(bottom + 6)


def describe(view: PipelineView) -> str:
    """The picture in words, for those who do not see it."""
    parts = []
    for stage in view.stages:
        edge = view.edges[stage.spec.stage_index]
        names = ", ".join(device.name for device in stage.devices) or "no device yet"
        words = " ".join(_edge_words(edge))
        mark = " (the bottleneck)" if stage.is_bottleneck else ""
        parts.append(f"{words} to stage {stage.spec.stage_index}{mark} on {names}")
    parts.append(f"{' '.join(_edge_words(view.edges[-1]))} back to the client")
    return "From the client through the broker: " + "; ".join(parts) + "."


def _begin(view: PipelineView, name: str, width: Number) -> Drawing:
    picture = Drawing(name, TITLE, describe(view), width)
    for kind in ("calm", "hot"):
        picture.stripes(f"{name}-{kind}", kind)
    return picture


def _client(
    picture: Drawing, view: PipelineView, left: float, top: float, width: float, words: str
) -> None:
    hot = view.bottleneck == "client"
    height = 54 if width > CLIENT_WIDTH else CLIENT_HEIGHT
    picture.rect(left, top, width, height, f"client{' hot' if hot else ''}", 10)
    middle = left + width / 2
    picture.text(middle, top + height / 2 - 4, "Client", "heading", "middle")
    picture.text(middle, top + height / 2 + 15, words, "small", "middle")
    if hot:
        draw_tag(picture, middle + 42, top - 20)


def _elsewhere(picture: Drawing, left: float, top: float, name: str, words: str) -> None:
    """Stands for a stage of the row before or after."""
    picture.rect(left, top, CLIENT_WIDTH, CLIENT_HEIGHT, "card absent", 10)
    middle = left + CLIENT_WIDTH / 2
    picture.text(middle, top + CLIENT_HEIGHT / 2 - 4, name, "heading", "middle")
    picture.text(middle, top + CLIENT_HEIGHT / 2 + 15, words, "small", "middle")


def _broker(
    picture: Drawing, view: PipelineView, x: float, y: float, width: float, height: float
) -> None:
    hot = view.bottleneck == "broker"
    picture.rect(x, y, width, height, f"broker{' hot' if hot else ''}", 10)
    if hot and width > height:
        draw_tag(picture, x + width - 12, y + height - 28)


def _broker_words(view: PipelineView) -> str:
    words = "MQTT broker: every arrow goes in and out of it"
    if view.broker_bytes_per_image is not None:
        words += f", {size(view.broker_bytes_per_image)} an image"
    return words


def _open_edge(picture: Drawing, edge: EdgeView) -> None:
    names = ", ".join(spec.describe() + " " + spec.name for spec in edge.tensors)
    picture.open("edge", f"edge {edge.index}: {names}")


def _edge_words(edge: EdgeView) -> tuple[str, str]:
    first = f"{size(edge.size_bytes)} · {edge.codec}"
    return first, "a batch" if edge.transfer_ms is None else f"{figures.ms(edge.transfer_ms)}"


def _thickness(view: PipelineView, edge: EdgeView) -> float:
    return max(THINNEST_ARROW, edge.size_bytes / view.largest_bytes * WIDEST_ARROW)


def _tip(thick: float) -> float:
    return 6 + thick * 0.6


def _arrow_head(picture: Drawing, x: float, y: float, turn: int, thick: float) -> None:
    """A triangle whose tip is at x, y and points up (0) or to the right (90)."""
    length, half = _tip(thick) + 1, 4 + thick * 0.75
    if turn == 0:
        steps = ("M", x, y + 1, "L", x + half, y + length, "H", x - half, "Z")
    else:
        steps = ("M", x - 1, y, "L", x - length, y + half, "V", y - half, "Z")
    picture.path(steps, "arrow-head")
