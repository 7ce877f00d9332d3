"""Figures that pages take from bench/results are those that stand there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.results import load

ROOT = Path(__file__).parent.parent
NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
Row = dict[str, Any]


def row(benchmark: str, **wanted: object) -> Row:
    """The one row of a benchmark's results that has all of these values."""
    rows = load(ROOT / "bench" / "results" / f"{benchmark}.json").rows
    (found,) = (one for one in rows if wanted.items() <= one.items())
    return found


def pipeline(model: str, batch: int) -> Row:
    return row("pipeline", model=model, batch=batch)


def share(model: str, batch: int) -> str:
    """Of what two processes with the whole model reach."""
    return f"{pipeline(model, batch)['of_limit']['median']:.2f}"


def hop(size_bytes: int) -> str:
    """Ours as a multiple of bare paho's."""
    return f"{row('hop', size_bytes=size_bytes)['ratio']['median']:.2f}"


def memory(process: str, *keys: str) -> list[str]:
    found = row("memory", process=process)
    return [f"{found[f'{key}_mb']:.0f}" for key in keys]


def above_aim() -> str:
    """By how many MB a stage that loads exceeds what it needs afterwards, at most; rounded up."""
    found = [row("memory", process=f"resnet50-1-{name}") for name in (FIRST, SECOND, WHOLE)]
    return str(-int(-max(one["peak_mb"] - one["aim_mb"] for one in found) // 1))


def codec(name: str) -> list[str]:
    """Least and most of tensors of 300 KB and more, but for that with 49 values a channel."""
    shapes = ("1x24x56x56", "1x256x56x56", "8x24x56x56")
    if name != "int8-per-channel":
        shapes += ("8x2048x7x7",)
    found = [row("codecs", shape=shape, codec=name)["ratio"] for shape in shapes]
    return [f"{min(found):.1f}", f"{max(found):.1f}"]


FIRST, SECOND, WHOLE = "halves stage 0", "halves stage 1", "all stage 0"
TORCH = "import torch, nothing else"
MOBILE, RESNET = "mobilenet_v2", "resnet50"
HARDWARE, CODECS = "docs/hardware.md", "docs/adr/0020-codecs-with-a-scale-for-each-image.md"


class Sentence(NamedTuple):
    """Words of a page, ``#`` for each figure, and what the results say the figures are."""

    page: str
    words: str
    figures: Callable[[], list[str]]


PUBLISHED = (
    Sentence(
        "README.md",
        "| MobileNetV2 # at batch 1, # at batch 8; ResNet50 # and # |",
        lambda: [share(MOBILE, 1), share(MOBILE, 8), share(RESNET, 1), share(RESNET, 8)],
    ),
    Sentence(
        "README.md",
        "| # x at 75 KB, # x at 300 KB, # x at 5 MB |",
        lambda: [hop(75_000), hop(300_000), hop(5_000_000)],
    ),
    Sentence(
        "README.md",
        "half of ResNet50 (# MB of weights) | # MB; a process that only imported torch: # MB |",
        lambda: [*memory(f"resnet50-1-{FIRST}", "weights", "steady"), *memory(TORCH, "steady")],
    ),
    Sentence(
        HARDWARE,
        "first half of ResNet50 (# MB of weights) | # MB; # MB while loading |",
        lambda: memory(f"resnet50-1-{FIRST}", "weights", "steady", "peak"),
    ),
    Sentence(
        HARDWARE,
        "The second half (# MB) | # MB; # MB while loading |",
        lambda: memory(f"resnet50-1-{SECOND}", "weights", "steady", "peak"),
    ),
    Sentence(
        HARDWARE,
        "All of ResNet50 (# MB) | # MB; # MB while loading |",
        lambda: memory(f"resnet50-1-{WHOLE}", "weights", "steady", "peak"),
    ),
    Sentence(
        HARDWARE,
        "imported torch and nothing else | # MB |",
        lambda: memory(TORCH, "steady"),
    ),
    Sentence(HARDWARE, "while it loads, up to # MB more than that", lambda: [above_aim()]),
    Sentence(
        HARDWARE,
        "# MB in [bench.start_up]",
        lambda: [f"{row('start_up', until='online')['resident_mb']:.0f}"],
    ),
    Sentence(CODECS, "| `float16` | # to # |", lambda: codec("float16")),
    Sentence(
        CODECS,
        "| `int8-per-channel` | # to #; # with 49 values a channel |",
        lambda: [
            *codec("int8-per-channel"),
            f"{row('codecs', shape='8x2048x7x7', codec='int8-per-channel')['ratio']:.1f}",
        ],
    ),
    Sentence(CODECS, "| `int8` | # to # |", lambda: codec("int8")),
)


@pytest.mark.parametrize("sentence", PUBLISHED, ids=lambda s: f"{s.page}: {s.words}")
def test_a_page_says_what_the_results_say(sentence: Sentence) -> None:
    pattern = re.escape(sentence.words).replace(r"\#", NUMBER)
    said = re.findall(pattern, (ROOT / sentence.page).read_text())
    assert len(said) == 1, f"{sentence.page} must say this once: {sentence.words}"
    (found,) = said
    assert list(found if isinstance(found, tuple) else (found,)) == sentence.figures()
