"""What bench/README.md says between its tables follows from the results that they show."""

import pytest

from tests.published_figures import (
    FIRST,
    MOBILE,
    RESNET,
    SECOND,
    WHOLE,
    Row,
    Sentence,
    above_aim,
    memory,
    pipeline,
    row,
)

BENCH = "bench/README.md"
LONG = "behind 900 tokens"
ONNX, LAST, COMPILED = "onnxruntime", "torch channels-last", "torch compiled"


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


def peaks(process: str) -> list[str]:
    """Without prepacking, and with it."""
    return [*memory(f"{process}, no prepack", "peak"), *memory(process, "peak")]


def watched(key: str) -> list[str]:
    """Percent by which the median with metrics and traces differs."""
    works = (MOBILE, "nothing, 75 KB")
    return [f"{(row('overhead', work=one)[key]['median'] - 1) * 100:+.0f}" for one in works]


PUBLISHED = (
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
        "Of the # ms that a token takes longer, the two hops are #; the stages compute for # ms "
        "together (# less the hops) against one process's #. So",
        lambda: of_two_stages(1, "longer", "hops", "computing", "ours", "alone"),
    ),
    Sentence(
        BENCH,
        "hops of 1 ms would bring it to #, and hops that cost nothing to #. Bare",
        lambda: of_two_stages(2, "with hops of 1 ms", "with hops of nothing"),
    ),
    Sentence(
        BENCH,
        "where nothing is computed, # at 1 KB",
        lambda: [f"{row('hop', size_bytes=1000)['ours_p50_ms']:.2f}"],
    ),
    Sentence(
        BENCH,
        "Four texts reach # as one batch, # as two of two, and not 1.5",
        lambda: [speed("2 stages, 1 batch of 4"), speed("2 stages, 2 batches of 2")],
    ),
    Sentence(
        BENCH,
        "two rows each and nothing between them, reach #. They share",
        lambda: [speed("both stages at once, nothing between")],
    ),
    Sentence(
        BENCH,
        "a step of four rows takes one process # ms where one row takes #, so two batches of two "
        "over two stages could gain # over # at most, #. What",
        lambda: [*(f"{ms:.0f}" for ms in steps() * 2), f"{steps()[0] / steps()[1]:.1f}"],
    ),
    Sentence(
        BENCH,
        "one process is # times as fast with it",
        lambda: [speed("one process, int4", 1)],
    ),
    Sentence(
        BENCH,
        "two batches of two reach # of one process that has all four",
        lambda: [speed("2 stages, int4, 2 batches of 2")],
    ),
    Sentence(
        BENCH,
        "as one process's does, to # and # times",
        lambda: [grown("2 stages"), grown("one process")],
    ),
    Sentence(
        BENCH, "with prepacking by # to # MB", lambda: [f"{f(above_aim()):.0f}" for f in (min, max)]
    ),
    Sentence(
        BENCH,
        "# for # MB with the first half, # for # with the second, # for # with the whole",
        lambda: [
            figure for name in (FIRST, SECOND, WHOLE) for figure in peaks(f"resnet50-1-{name}")
        ],
    ),
    Sentence(
        BENCH,
        "the medians are # and # % of throughput and # and # % of processor time",
        lambda: [*watched("throughput"), *watched("processor_time")],
    ),
)


@pytest.mark.parametrize("sentence", PUBLISHED, ids=lambda s: s.words)
def test_the_text_says_what_the_results_say(sentence: Sentence) -> None:
    sentence.is_true()
