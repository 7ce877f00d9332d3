"""Turns, ratios and tables: what every benchmark's figures go through."""

import pytest

from bench.rounds import ratio_spread, ratios, spread, take_turns
from bench.tables import NOTHING, Column, figure, figures, markdown, plain, ratio, show_bytes, text


def test_the_order_of_the_sides_turns_round_every_round() -> None:
    called: list[str] = []
    sides = {name: lambda n=name: called.append(n) or len(called) for name in "abc"}
    found = take_turns(sides, 3)
    assert "".join(called) == "abccbaabc"
    assert found == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_a_ratio_is_taken_within_its_round() -> None:
    assert ratios([2.0, 30.0], [4.0, 10.0]) == [0.5, 3.0]
    assert ratio_spread([2.0, 30.0, 5.0], [4.0, 10.0, 5.0]) == {
        "median": 1.0,
        "min": 0.5,
        "max": 3.0,
    }
    with pytest.raises(ValueError, match="argument 2"):
        ratios([1.0, 2.0], [1.0])


def test_no_rounds_are_no_figure() -> None:
    with pytest.raises(ValueError, match="no rounds"):
        spread([])


COLUMNS = (
    text("name", "name"),
    figure("ms", "ms", 2),
    ratio("ratio", "ratio"),
    figures("parts", "parts", 1),
    Column("size", lambda row: show_bytes(row["size"])),
)
ROWS = [
    {
        "name": "a|b",
        "ms": 1234.5,
        "ratio": {"median": 0.8, "min": 0.75, "max": 1.0},
        "parts": {"x": 1.0, "y": 2.25},
        "size": 1_600_000,
    },
    {"name": "c", "ms": None, "size": 75_000},
]


def test_a_markdown_table_shows_medians_with_ranges_and_escapes_bars() -> None:
    assert markdown(COLUMNS, ROWS).splitlines() == [
        "| name | ms | ratio | parts | size |",
        "|---|--:|--:|--:|--:|",
        "| a\\|b | 1,234.50 | 0.80 (0.75…1.00) | 1.0, 2.2 | 1.6 MB |",
        f"| c | {NOTHING} | {NOTHING} | {NOTHING} | 75 KB |",
    ]


def test_a_plain_table_is_aligned() -> None:
    head, first, second = plain(COLUMNS, ROWS).splitlines()
    assert head.startswith("name        ms")
    assert head.index("ms") + 2 == first.index("1,234.50") + 8
    assert second.endswith("75 KB")
    assert len(head) == len(first) == len(second)
