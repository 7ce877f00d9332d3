"""Sentences of pages, and the figures that they take from bench/results."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.results import load

ROOT = Path(__file__).parent.parent
NUMBER = r"([-+]?\d[\d,]*(?:\.\d+)?)"
Row = dict[str, Any]
MOBILE, RESNET = "mobilenet_v2", "resnet50"
FIRST, SECOND, WHOLE = "halves stage 0", "halves stage 1", "all stage 0"


def row(benchmark: str, **wanted: object) -> Row:
    """The one row of a benchmark's results that has all of these values."""
    rows = load(ROOT / "bench" / "results" / f"{benchmark}.json").rows
    (found,) = (one for one in rows if wanted.items() <= one.items())
    return found


def pipeline(model: str, batch: int) -> Row:
    return row("pipeline", model=model, batch=batch)


def memory(process: str, *keys: str) -> list[str]:
    found = row("memory", process=process)
    return [f"{found[f'{key}_mb']:.0f}" for key in keys]


def above_aim() -> list[float]:
    """By how many MB each process that loads ResNet50 exceeds what it is to need afterwards."""
    found = [row("memory", process=f"resnet50-1-{name}") for name in (FIRST, SECOND, WHOLE)]
    return [one["peak_mb"] - one["aim_mb"] for one in found]


class Sentence(NamedTuple):
    """Words of a page, ``#`` for each figure, and what the results say the figures are."""

    page: str
    words: str
    figures: Callable[[], list[str]]

    def is_true(self) -> None:
        """Look at the page.

        Raises:
            AssertionError: it does not say so once, or says other figures.
        """
        pattern = re.escape(self.words).replace(r"\#", NUMBER)
        said = re.findall(pattern, (ROOT / self.page).read_text())
        assert len(said) == 1, f"{self.page} must say this once: {self.words}"
        found = list(said[0] if isinstance(said[0], tuple) else said)
        assert found == self.figures(), f"{self.page}: {self.words}"
