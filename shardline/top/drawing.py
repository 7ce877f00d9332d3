"""Lines of text for a terminal: cut to a width in cells, with bars and curves. Pure.

Whatever comes from another process is made printable here, and is never read as markup.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from contract.printable import printable

GOOD, WARN, BAD, TITLE, DIM, ACCENT = "green", "yellow", "bold red", "bold", "dim", "cyan"
"""Styles. None says anything that the words do not say as well."""
BUSY_FROM, WARM_FROM = 0.85, 0.6
FULL, EMPTY, CUT, ARROW = "█", "·", "…", "▶"
_CURVE = "▁▂▃▄▅▆▇"
_ASCII = str.maketrans(
    {
        **dict(zip(_CURVE, "__.--==", strict=True)),
        **{FULL: "#", EMPTY: ".", CUT: "~", ARROW: ">", "—": "-", "°": " ", "×": "x", "·": "."},
    }
)


def plain(text: object, style: str = "") -> Text:
    """One line of text, shown as it is."""
    return Text(printable(str(text)), style, no_wrap=True, end="")


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells, with a sign where something is missing."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + CUT if width > 0 else ""


def fit(line: Text, width: int) -> Text:
    """A line of exactly ``width`` cells."""
    fitted = line.copy()
    fitted.truncate(width, overflow="ellipsis", pad=True)
    return fitted


def bar(share: float, width: int) -> Text:
    """A share of 1 as a bar."""
    share = min(1.0, max(0.0, share))
    filled = round(share * width)
    return Text.assemble((FULL * filled, load_style(share)), (EMPTY * (width - filled), DIM))


def load_style(share: float) -> str:
    """How a share of time is coloured: what is busy is what bounds."""
    return BAD if share >= BUSY_FROM else WARN if share >= WARM_FROM else GOOD


def curve(values: Sequence[float], width: int) -> str:
    """The last values as a curve from 0 to the largest of them, one a cell."""
    shown = [max(0.0, value) for value in values[-width:]] if width > 0 else []
    largest = max(shown, default=0.0)
    if largest <= 0:
        return _CURVE[0] * len(shown)
    steps = len(_CURVE) - 1
    return "".join(_CURVE[round(value / largest * steps)] for value in shown)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its title and its width in cells."""

    title: str
    width: int
    is_left: bool = False


def row(columns: Sequence[Column], cells: Iterable[Text | str]) -> Text:
    """A line with one cell for each column, the numbers at the right of theirs."""
    line = Text(no_wrap=True, end="")
    for column, cell in zip_longest(columns, cells, fillvalue=""):
        assert isinstance(column, Column)
        text = plain(cell) if isinstance(cell, str) else cell.copy()
        if text.cell_len > column.width:
            text.truncate(column.width, overflow="ellipsis")
        gap = " " * (column.width - text.cell_len)
        if line:
            line.append(" ")
        line.append_text(Text.assemble(text, gap) if column.is_left else Text.assemble(gap, text))
    return line


def heading(columns: Sequence[Column]) -> Text:
    """The line of a table's titles."""
    line = row(columns, [column.title for column in columns])
    line.stylize(DIM)
    return line


def pairs(label: str, found: Iterable[tuple[str, str, str]], width: int) -> list[Text]:
    """``label  name value  name value …``, on as many lines as that takes."""
    shown = [
        Text.assemble(plain(f"{name} ", DIM), plain(value, style)) for name, value, style in found
    ]
    cells = sum(pair.cell_len for pair in shown)
    gap = " " if len(label) + 1 + cells + 2 * len(shown) > width else "  "
    lines = [Text.assemble((f"{label} ", TITLE))]
    for pair in shown:
        if lines[-1].cell_len + len(gap) + pair.cell_len > width and lines[-1].cell_len > 7:
            lines.append(plain(" " * (len(label) + 1)))
        lines[-1].append(gap)
        lines[-1].append_text(pair)
    return lines


def in_ascii(text: str) -> str:
    """The same for a terminal that knows no other letters."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()
