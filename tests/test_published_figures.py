"""Figures that pages take from bench/results are those that stand there."""

import pytest

from tests.published_figures import (
    FIRST,
    MOBILE,
    RESNET,
    SECOND,
    WHOLE,
    Sentence,
    above_aim,
    memory,
    pipeline,
    row,
)

TORCH = "import torch, nothing else"
HARDWARE, CODECS = "docs/hardware.md", "docs/adr/0020-codecs-with-a-scale-for-each-image.md"


def share(model: str, batch: int) -> str:
    """Of what two processes with the whole model reach."""
    return f"{pipeline(model, batch)['of_limit']['median']:.2f}"


def hop(size_bytes: int) -> str:
    """Ours as a multiple of bare paho's."""
    return f"{row('hop', size_bytes=size_bytes)['ratio']['median']:.2f}"


def codec(name: str) -> list[str]:
    """Least and most of tensors of 300 KB and more, but for that with 49 values a channel."""
    shapes = ("1x24x56x56", "1x256x56x56", "8x24x56x56")
    if name != "int8-per-channel":
        shapes += ("8x2048x7x7",)
    found = [row("codecs", shape=shape, codec=name)["ratio"] for shape in shapes]
    return [f"{min(found):.1f}", f"{max(found):.1f}"]


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
    Sentence(
        HARDWARE,
        "while it loads, up to about # MB more than that",
        lambda: [f"{max(above_aim()):.0f}"],
    ),
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
    sentence.is_true()
