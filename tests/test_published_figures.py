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


def beside(model: str, batch: int) -> str:
    """Percent of two processors that broker and client take."""
    found = pipeline(model, batch)
    batches_per_s = found["images_per_s"]["pipeline"]["median"] / batch
    spent_ms = found["cpu_ms"]["broker"] + found["cpu_ms"]["client"]
    return f"{batches_per_s * spent_ms / 1e3 / 2:.0%}".removesuffix("%")


def computing(model: str, batch: int, digits: int = 0) -> list[str]:
    """Ms for a batch: of both stages together, and of one of two processes with the whole model."""
    found = pipeline(model, batch)
    whole = 2 * batch / found["images_per_s"]["two processes"]["median"] * 1e3
    return [f"{sum(found['compute_ms']):.{digits}f}", f"{whole:.{digits}f}"]


def lopsided() -> list[str]:
    """Percent by which the longer stage computes longer than the mean: least and most of all."""
    every = [pipeline(model, batch) for model in (MOBILE, RESNET) for batch in (1, 8)]
    found = [max(one["compute_ms"]) / sum(one["compute_ms"]) * 2 - 1 for one in every]
    return [f"{value * 100:.0f}" for value in (min(found), max(found))]


def over_rpc(model: str, key: str = "over_rpc", digits: int = 1) -> str:
    return f"{row('rpc', model=model, batch=8)[key]['median']:.{digits}f}"


def engine(name: str, batch: int) -> Row:
    return row("engines", batch=batch, engine=name)


def over_eager(name: str, batch: int, digits: int = 2) -> str:
    """How many times as fast as eager PyTorch."""
    return f"{engine(name, batch)['over_eager']['median']:.{digits}f}"


def in_the_best_layout() -> float:
    """How many times as fast as eager PyTorch in its own best layout onnxruntime is."""
    times = {name: engine(name, 8)["over_eager"]["median"] for name in (ONNX, LAST)}
    return float(times[ONNX] / times[LAST])


def untuned() -> str:
    """By how much RPC would be behind in the layout that nobody chose."""
    last = engine(LAST, 8)["over_eager"]["median"]
    return f"{row('rpc', model=MOBILE)['over_rpc']['median'] * last:.1f}"


def token_ms(what: str) -> list[float]:
    """Of this side, and of the one that it stands against."""
    return list(row("llm", what=what)["ms"])


def two_stages() -> dict[str, float]:
    """Where a token's time goes that one process does not need; shares of one process's speed."""
    ours, alone = token_ms("2 stages")
    hop_ms = row("llm", what="a hop, beside computing")["hop_ms"]["median"]
    computing_ms = ours - 2 * hop_ms
    return {
        "hop": hop_ms,
        "longer": ours - alone,
        "hops": 2 * hop_ms,
        "computing": computing_ms,
        "ours": ours,
        "alone": alone,
        "with hops of 1 ms": alone / (computing_ms + 2),
        "with hops of nothing": alone / computing_ms,
    }


def of_two_stages(digits: int, *names: str) -> list[str]:
    found = two_stages()
    return [f"{found[name]:.{digits}f}" for name in names]


def speed(what: str, digits: int = 2) -> str:
    return f"{row('llm', what=what)['speed']['median']:.{digits}f}"


def beside_the_long_context() -> str:
    """What two stages reach of one process's speed in those rounds, at the short one."""
    alone, ours = (token_ms(f"{name}, {LONG}")[1] for name in ("one process", "2 stages"))
    return f"{alone / ours:.2f}"


def steps() -> list[float]:
    """Ms for a step of one process with four rows, and with one."""
    return [4 * token_ms("2 stages, 2 batches of 2")[1], token_ms("2 stages")[1]]


def grown(name: str) -> str:
    """How many times as long a token takes behind the long context."""
    far, near = token_ms(f"{name}, {LONG}")
    return f"{far / near:.2f}"


LONG = "behind 900 tokens"
ONNX, LAST, COMPILED = "onnxruntime", "torch channels-last", "torch compiled"
FIRST, SECOND, WHOLE = "halves stage 0", "halves stage 1", "all stage 0"
TORCH = "import torch, nothing else"
MOBILE, RESNET = "mobilenet_v2", "resnet50"
BENCH = "bench/README.md"
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
    Sentence(
        BENCH,
        "the whole gain, # times, is smaller than the engine's own, # times",
        lambda: [over_rpc(MOBILE), f"{in_the_best_layout():.1f}"],
    ),
    Sentence(
        BENCH,
        "of MobileNetV2 compute for # ms and those of ResNet50 for #;",
        lambda: [computing(MOBILE, 1)[0], computing(RESNET, 1)[0]],
    ),
    Sentence(
        BENCH,
        "take # % of both processors at batch 1 of MobileNetV2 and # % at batch 8, # % and # % "
        "with ResNet50;",
        lambda: [beside(model, batch) for model in (MOBILE, RESNET) for batch in (1, 8)],
    ),
    Sentence(BENCH, "computes # to # % longer than the mean of the two", lopsided),
    Sentence(
        BENCH,
        "# against # ms and # against # ms with MobileNetV2 at batch 1 and 8, # against # ms with "
        "ResNet50 at batch 8, though # against # ms at batch 1",
        lambda: [
            *(*computing(MOBILE, 1, 1), *computing(MOBILE, 8)),
            *(*computing(RESNET, 8), *computing(RESNET, 1)),
        ],
    ),
    Sentence(
        BENCH,
        "computes MobileNetV2 at batch 8 # times as fast as eager PyTorch, and # times",
        lambda: [over_eager(ONNX, 8, 1), f"{in_the_best_layout():.1f}"],
    ),
    Sentence(BENCH, "by these figures, be about #. Over", lambda: [untuned()]),
    Sentence(
        BENCH,
        "much the same, # and #. The",
        lambda: [over_rpc(MOBILE, "over_gloo"), over_rpc(RESNET, "over_gloo")],
    ),
    Sentence(
        BENCH,
        "# times eager against # at batch 1, # against # at batch 8",
        lambda: [over_eager(name, batch) for batch in (1, 8) for name in (COMPILED, ONNX)],
    ),
    Sentence(
        BENCH,
        "# to # s at each start",
        lambda: [f"{engine(COMPILED, batch)['ready_s']:.0f}" for batch in (8, 1)],
    ),
    Sentence(
        BENCH,
        "two stages at # of the speed of one process, not 0.9 (# in the rounds beside the long "
        "context, later in the same run), and a hop costs # ms beside computing",
        lambda: [speed("2 stages"), beside_the_long_context(), *of_two_stages(1, "hop")],
    ),
    Sentence(
        BENCH,
        "Of the # ms that a token takes longer, the two hops are #. The larger part is that the "
        "stages compute longer: # ms together (# less the hops) against one process's #. So",
        lambda: of_two_stages(1, "longer", "hops", "computing", "ours", "alone"),
    ),
    Sentence(
        BENCH,
        "hops of 1 ms would bring it to #, and hops that cost nothing to #. Why",
        lambda: of_two_stages(2, "with hops of 1 ms", "with hops of nothing"),
    ),
    Sentence(
        BENCH,
        "where nothing is computed, # at 1 KB",
        lambda: [f"{row('hop', size_bytes=1000)['ours_p50_ms']:.2f}"],
    ),
    Sentence(
        BENCH,
        "Four texts reach # and not 1.5: a step of four rows takes one process # ms where one row "
        "takes #, so",
        lambda: [speed("2 stages, 2 batches of 2"), *(f"{ms:.0f}" for ms in steps())],
    ),
    Sentence(
        BENCH,
        "one process is # times as fast with it",
        lambda: [speed("one process, int4", 1)],
    ),
    Sentence(
        BENCH,
        "as one process's does, to # and # times",
        lambda: [grown("2 stages"), grown("one process")],
    ),
)


@pytest.mark.parametrize("sentence", PUBLISHED, ids=lambda s: f"{s.page}: {s.words}")
def test_a_page_says_what_the_results_say(sentence: Sentence) -> None:
    pattern = re.escape(sentence.words).replace(r"\#", NUMBER)
    said = re.findall(pattern, (ROOT / sentence.page).read_text())
    assert len(said) == 1, f"{sentence.page} must say this once: {sentence.words}"
    (found,) = said
    assert list(found if isinstance(found, tuple) else (found,)) == sentence.figures()
