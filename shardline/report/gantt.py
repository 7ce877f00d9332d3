"""A few batches on their way through the pipeline, drawn by time: who computed what when, and the
bubbles between. One row for each device; a batch has one colour in all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path

from client.trace_parts import Part, PartKind, TimedBatch
from contract.errors import SettingsError
from shardline import figures
from shardline.report.svg import Drawing, fit, width_of

WIDTH, LEFT, RIGHT = 1100.0, 170.0, 120.0
TOP, ROW, GAP = 66.0, 44.0, 10.0
COLOURS = 8
_SMALL = 12

STYLE = """
svg { color-scheme: light dark; --paper: #fff; --ink: #18202b; --quiet: #4d5967; --rule: #d3d9e1;
  --band: #f5f7fa; --bubble: #c9d1db; --c0: #2f6fd0; --c1: #c2571a; --c2: #1d7f4e; --c3: #a8327f;
  --c4: #6b56c9; --c5: #96700b; --c6: #1c7f92; --c7: #b3323f; background: var(--paper);
  font-family: Inter, system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
@media (prefers-color-scheme: dark) { svg { --paper: #12161c; --ink: #e9edf2; --quiet: #a9b4c2;
  --rule: #343d4a; --band: #1a2029; --bubble: #465264; --c0: #6ea4f5; --c1: #f0935a; --c2: #5fc593;
  --c3: #e083bf; --c4: #a796f2; --c5: #d6b04c; --c6: #5fc0d2; --c7: #f0808b } }
text { fill: var(--ink); font-size: 14px; font-variant-numeric: tabular-nums }
.paper { fill: var(--paper) } .band { fill: var(--band) } .grid { stroke: var(--rule) }
.title { font-size: 17px; font-weight: 650 } .name { font-weight: 650 }
.small { font-size: 12px; fill: var(--quiet) } .number { font-size: 12px; fill: var(--paper) }
.stripe-ground { fill: var(--band) } .stripe { fill: var(--bubble) }
.wait { opacity: .45 } .transfer { opacity: .8 } .key { fill: var(--quiet) }
""" + " ".join(f".c{n} {{ fill: var(--c{n}) }}" for n in range(COLOURS))


@dataclass(frozen=True, slots=True)
class Row:
    """One device and what it did, by number of the batch; ``stage_index`` is of its first part."""

    device: str
    stage_index: int
    parts: tuple[tuple[int, Part], ...]

    def of(self, *kinds: PartKind) -> list[tuple[int, Part]]:
        """Parts of these kinds, by time."""
        chosen = [pair for pair in self.parts if pair[1].kind in kinds]
        return sorted(chosen, key=lambda pair: pair[1].begin_us)

    def bubbles(self) -> list[tuple[int, int]]:
        """Times between two batches in which the device computed none of these."""
        found, end_us = list[tuple[int, int]](), None
        for _, part in self.of(PartKind.COMPUTE):
            if end_us is not None and part.begin_us > end_us:
                found.append((end_us, part.begin_us))
            end_us = part.end_us if end_us is None else max(end_us, part.end_us)
        return found

    def bubble_share(self) -> float | None:
        """Bubbles as a share of the time from its first batch to its last; None of fewer than 2."""
        computed = [part for _, part in self.of(PartKind.COMPUTE)]
        if len(computed) < 2:
            return None
        whole_us = max(part.end_us for part in computed) - computed[0].begin_us
        return sum(end - begin for begin, end in self.bubbles()) / whole_us if whole_us else None


def rows_of(batches: Sequence[TimedBatch]) -> list[Row]:
    """A row for each device, by stage and name."""
    parts: dict[str, list[tuple[int, Part]]] = {}
    for number, batch in enumerate(batches):
        for part in batch.parts:
            if part.device is not None:
                parts.setdefault(part.device, []).append((number, part))
    rows = [Row(name, own[0][1].stage_index or 0, tuple(own)) for name, own in parts.items()]
    return sorted(rows, key=lambda row: (row.stage_index, row.device))


def draw_gantt(batches: Sequence[TimedBatch], model: str) -> str:
    """The picture of at least one batch, as SVG that needs nothing from elsewhere."""
    begin_us = min(batch.trace.queued_us for batch in batches)
    end_us = max(batch.trace.received_us for batch in batches)
    rows = rows_of(batches)
    picture = Drawing("gantt", f"{len(batches)} batches through {model}", describe(rows), WIDTH)
    picture.style(STYLE)
    picture.stripes("gantt-bubble", "bubble-stripes")
    height = TOP + len(rows) * (ROW + GAP) + 74
    picture.rect(0, 0, WIDTH, height, "paper")
    title = f"{len(batches)} batches through {model}"
    picture.text(16, 28, fit(title, WIDTH - 32, 17), "title")
    scale = (WIDTH - LEFT - RIGHT) / max(1, end_us - begin_us)
    bottom = TOP + len(rows) * (ROW + GAP)
    _axis(picture, (end_us - begin_us) / 1000, scale * 1000, bottom)
    for index, row in enumerate(rows):
        _row(picture, row, batches, TOP + index * (ROW + GAP), begin_us, scale)
    _legend(picture, bottom + 50)
    return picture.finish(height)


def describe(rows: Sequence[Row]) -> str:
    """The picture in words, for those who do not see it."""
    parts = []
    for row in rows:
        share = row.bubble_share()
        idle = "one batch" if share is None else f"idle {figures.percent(share)} of the time"
        parts.append(f"stage {row.stage_index} on {row.device}: {idle}")
    return "Time from left to right, a row for each device. " + "; ".join(parts) + "."


def write_gantt(batches: Sequence[TimedBatch], model: str, file: Path) -> None:
    """Write the picture to a file that ends in .svg.

    Raises:
        SettingsError: the file has another ending, or cannot be written.
    """
    check_picture_name(file)
    try:
        file.write_text(draw_gantt(batches, model), encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"--picture {file}: cannot be written ({error.strerror}); expected a file in a folder "
            "that exists, for example pipeline.svg"
        ) from error


def check_picture_name(file: Path) -> None:
    """Refuse, before anything is measured, what would not be written after it.

    Raises:
        SettingsError: not a name that ends in .svg.
    """
    if file.suffix.lower() != ".svg":
        raise SettingsError(
            f"--picture {file}: expected a name that ends in .svg, which every browser opens and "
            "saves as anything else"
        )


def _axis(picture: Drawing, whole_ms: float, per_ms: float, bottom: float) -> None:
    step = _step(whole_ms / 8)
    for index in range(int(whole_ms / step) + 1):
        x = LEFT + index * step * per_ms
        picture.line(x, TOP - 10, x, bottom, "grid")
        picture.text(x, TOP - 16, f"{index * step:g}", "small", "middle")
    picture.text(LEFT - 10, TOP - 16, "ms", "small", "end")
    picture.text(WIDTH - RIGHT + 12, TOP - 16, "bubbles", "small")


def _step(at_least: float) -> float:
    """1, 2 or 5 of some power of ten."""
    power = 10.0 ** floor(log10(max(at_least, 1e-3)))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= at_least)


def _row(
    picture: Drawing,
    row: Row,
    batches: Sequence[TimedBatch],
    top: float,
    begin_us: int,
    scale: float,
) -> None:
    """Upper line: transfers to the device. Middle: what it computes. Lower line: what waits."""

    def bar(begin: int, end: int, y: float, height: float, kind: str, pattern: str = "") -> None:
        x = LEFT + (begin - begin_us) * scale
        picture.rect(x, y, (end - begin) * scale, height, kind, pattern=pattern)

    picture.rect(LEFT, top, WIDTH - LEFT - RIGHT, ROW, "band")
    picture.text(16, top + 18, f"stage {row.stage_index}", "name")
    picture.text(16, top + 36, fit(row.device, LEFT - 30, 14), "small")
    for begin, end in row.bubbles():
        bar(begin, end, top + 10, 22, "bubble", "gantt-bubble")
    for kinds, y, high in (
        ((PartKind.TRANSFER,), top + 3, 4),
        ((PartKind.WAIT,), top + ROW - 9, 5),
        ((PartKind.COMPUTE, PartKind.PUBLISH), top + 10, 22),
    ):
        for number, part in row.of(*kinds):
            seq, length_ms = batches[number].trace.seq, part.length_us / 1000
            picture.open("part", f"batch {seq}: {part.kind} {figures.ms(length_ms)}")
            bar(part.begin_us, part.end_us, y, high, f"{part.kind} c{seq % COLOURS}")
            room = part.length_us * scale
            if part.kind is PartKind.COMPUTE and room > width_of(str(seq), _SMALL) + 4:
                middle = LEFT + (part.begin_us - begin_us) * scale + room / 2
                picture.text(middle, top + 25, str(seq), "number", "middle")
            picture.close()
    share = figures.percent(row.bubble_share())
    picture.text(WIDTH - RIGHT + 12, top + 26, share, "name")


def _legend(picture: Drawing, y: float) -> None:
    x = LEFT
    for high, kind, words in (
        (4, "key transfer", "transfer to the device"),
        (14, "key", "compute, with the batch's number"),
        (5, "key wait", "wait at the device"),
        (14, "bubble", "bubble: computes none of these"),
    ):
        pattern = "gantt-bubble" if kind == "bubble" else ""
        picture.rect(x, y - 5 - high / 2, 24, high, kind, pattern=pattern)
        picture.text(x + 32, y, words, "small")
        x += 32 + width_of(words, _SMALL) + 22
