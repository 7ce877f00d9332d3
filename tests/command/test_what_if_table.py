"""The what-if answers in a terminal: every figure, and nothing wider than 80 columns."""

import io

import pytest
from rich.console import Console

from planner.simulation.under_load import DeviceUse, UnderLoad, WindowRate
from planner.what_if import AtMost, CodecRate, EdgeCodec, EdgeCodecs, Purchase, WhatIf
from shardline.what_if_table import bar, what_if_report

LONG = "raspberry-pi-in-the-attic-behind-the-chimney"


def answers() -> WhatIf:
    return WhatIf(
        images_per_s=1234.5,
        scaling=(
            AtMost(devices=1, problem="needs 612 MB on [bold]pi-0[/bold], 480 MB free"),
            AtMost(devices=2, used=2, strategy="pipeline", images_per_s=617.25),
            AtMost(devices=3, used=2, strategy="replicas", images_per_s=1234.5),
        ),
        codecs=(
            CodecRate(codec="float32", strategy="mixed", images_per_s=1234.5, gain=0.0),
            CodecRate(codec="int8", strategy="mixed", images_per_s=987.6, gain=-0.2),
        ),
        edge_codecs=EdgeCodecs(
            edges=(
                EdgeCodec(edge=1, codec="int8", bytes_per_batch=50_000),
                EdgeCodec(edge=2, codec="float32", bytes_per_batch=1_200_000),
            ),
            images_per_s=1300.0,
            gain=0.053,
        ),
        purchases=(
            Purchase(what=f"one more device like {LONG}", images_per_s=1851.7, gain=0.5),
            Purchase(what="a broker link 10 x as fast", images_per_s=1235.0, gain=0.0004),
        ),
        advice=f"one more device like {LONG} helps most: 1,852 images/s, 50% more",
        windows=(
            WindowRate(window=1, images_per_s=12.3, latency_ms_p50=81.3),
            WindowRate(window=24, images_per_s=1222.2, latency_ms_p50=19.6),
        ),
        under_load=UnderLoad(
            window=6,
            jitter=0.05,
            images_per_s=1199.0,
            latency_ms_p50=41.5,
            latency_ms_p95=55.25,
            latency_ms_p99=101.0,
            devices=(
                DeviceUse(
                    device=LONG, stage_index=0, share=0.75, processor=0.5, up=0.99, down=0.01
                ),
                DeviceUse(device="b", stage_index=0, share=0.25, processor=1.0, up=0, down=0),
            ),
            broker=0.125,
            client=0.07,
            client_up=0.33,
            client_down=0.44,
        ),
    )


def printed(width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False, emoji=False)
    console.print(what_if_report(answers()))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line_with(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_it_fits_eighty_columns_and_says_everything() -> None:
    text = printed()
    assert max(map(len, text.splitlines())) <= 80
    run_together = "".join(text.split())
    for figure in ("617", "1,234", "988", "1,300", "1,852", "12.3", "81.3ms", "1,222", "1,199"):
        assert figure in run_together, figure
    for figure in ("41.5ms(median)", "55.2ms(95%)", "101ms(99%)", "6batchesinflight", "by5%"):
        assert figure in run_together, figure
    for utilisation in ("75%", "50%", "99%", "12%", "7%", "33%", "44%"):
        assert utilisation in run_together, utilisation
    assert "stage 0 to 1 int8 (50.0 KB), stage 1 to 2 float32 (1.2 MB)" in text
    assert "".join(answers().advice.split()) in run_together


def test_what_cannot_be_done_says_why_as_it_was_written() -> None:
    assert "[bold]pi-0[/bold]" in "".join(printed().split())


def test_devices_that_are_left_out_are_told() -> None:
    assert "replicas, 2 used" in line_with(printed(), "3 devices")
    assert "used" not in line_with(printed(), "2 devices")


def test_gains_have_a_sign_and_less_than_half_a_percent_is_none() -> None:
    text = printed(120)
    assert "+50%" in line_with(text, "one more device")
    assert "-20%" in line_with(text, "int8", "988")
    assert "%" not in line_with(text, "a broker link")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, ""), (1e-9, "▏"), (0.5, "██"), (0.53, "██▏"), (1.0, "████"), (7.0, "████")],
)
def test_a_bar_is_as_long_as_its_share(value: float, expected: str) -> None:
    assert bar(value, 1.0, width=4) == expected
    assert bar(value * 300, 300.0, width=4) == expected


def test_a_bar_of_nothing_is_empty() -> None:
    assert bar(0.0, 0.0) == ""
