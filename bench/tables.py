"""Tables of rows: for a terminal, aligned, and as Markdown. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and how it shows a row. ``is_text`` stands on the left, figures on the right."""

    title: str
    show: Callable[[Row], str]
    is_text: bool = False


def text(title: str, key: str) -> Column:
    """A word or a whole number."""
    return Column(title, lambda row: _or_nothing(row.get(key), str), is_text=True)


def figure(title: str, key: str, digits: int = 1) -> Column:
    """A number."""
    return Column(title, lambda row: _or_nothing(row.get(key), lambda v: f"{v:,.{digits}f}"))


def ratio(title: str, key: str, digits: int = 2) -> Column:
    """A :data:`bench.rounds.Spread`: the median, and the range in brackets."""
    return Column(title, lambda row: _or_nothing(row.get(key), lambda v: show_spread(v, digits)))


def figures(title: str, key: str, digits: int = 1) -> Column:
    """Several numbers: a list, or a mapping whose keys stand in the title."""

    def joined(value: Any) -> str:
        values = value.values() if isinstance(value, Mapping) else value
        return ", ".join(f"{one:,.{digits}f}" for one in values)

    return Column(title, lambda row: _or_nothing(row.get(key), joined))


def show_spread(value: Mapping[str, float], digits: int = 2) -> str:
    """«0.78 (0.75…0.88)»."""
    return f"{value['median']:.{digits}f} ({value['min']:.{digits}f}…{value['max']:.{digits}f})"


def show_bytes(count: float) -> str:
    """«16 KB», «8 MB»: 10^3 and 10^6 bytes, as the sizes of messages are counted."""
    return f"{count / 1e6:g} MB" if count >= 1e6 else f"{count / 1e3:g} KB"


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table for a README; a bar in a cell is escaped."""
    lines = [
        "| " + " | ".join(column.title for column in columns) + " |",
        "|" + "|".join("---" if column.is_text else "--:" for column in columns) + "|",
    ]
    for row in rows:
        cells = (column.show(row).replace("|", "\\|") for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plain(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    cells = [[column.title for column in columns]]
    cells += [[column.show(row) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column.is_text else cell.rjust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def _or_nothing(value: Any, show: Callable[[Any], str]) -> str:
    return NOTHING if value is None else show(value)
