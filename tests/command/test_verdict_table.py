"""Prediction, verdict and measurement in the terminal, on 80 columns."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from contract.plan import CodecVerification, Plan
from contract.prediction import Alternative, Prediction
from shardline import figures
from shardline.comparison import compare
from shardline.plan_table import verification_line
from shardline.verdict_table import gap_line, print_findings
from tests import resnet50_example as example
from tests.conftest import Run
from tests.tiny import make_tiny_plan


@pytest.fixture(scope="module")
def full() -> Plan:
    return example.resnet50_plan()


@pytest.fixture
def expected(full: Plan) -> Prediction:
    assert full.prediction is not None
    return full.prediction


def changed(plan: Plan, **changes: object) -> Plan:
    return Plan.model_validate({**dict(plan), **changes})


def printed(plan: Plan, width: int = 80) -> list[str]:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as capture:
        print_findings(plan, console)
    return capture.get().splitlines()


def row(lines: Sequence[str], beginning: str) -> str:
    """The first line that begins so, with one space where there are several."""
    plain = (" ".join(line.split()) for line in lines)
    return next(line for line in plain if line.startswith(f"{beginning} "))


def test_tables_fit_into_eighty_columns_without_folding(full: Plan) -> None:
    lines = printed(full)
    assert full.verdict is not None
    sentences = [line for line in lines if line.startswith("verdict: Made-up")]
    assert sentences == [f"verdict: {full.verdict.reason}"]
    assert max(len(line.rstrip()) for line in lines if line not in sentences) <= 80
    assert row(lines, "2 pi-attic") == ("2 pi-attic 100 % 554 ms 11.0 ms 279 ms 96 % 231 MB 300 MB")


def test_the_recommended_strategy_is_named_so(full: Plan) -> None:
    lines = printed(full)
    assert row(lines, "mixed").endswith(" recommended")
    assert row(lines, "single") == "single 1.86 2.17 s 8.61 s 325 MB 309 KB"
    assert sum("recommended" in line for line in lines) == 1


def test_another_choice_than_the_recommended_one_is_named_so(full: Plan) -> None:
    assert full.verdict is not None
    other = full.verdict.model_copy(update={"chosen": "pipeline"})
    lines = printed(changed(full, verdict=other))
    assert row(lines, "pipeline").endswith(" this plan")
    assert row(lines, "mixed").endswith(" recommended")


def test_a_strategy_that_cannot_be_says_why(full: Plan) -> None:
    assert full.verdict is not None
    problem = Alternative(strategy="single", problem="[b]no device[/b] can hold 412 MB")
    other = full.verdict.model_copy(
        update={"alternatives": (problem, *full.verdict.alternatives[1:])}
    )
    lines = [line.rstrip() for line in printed(changed(full, verdict=other))]
    assert "single: [b]no device[/b] can hold 412 MB" in lines
    assert row(lines, "single") == "single — — — — —"


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (51.3, "optimal"),
        (51.3 * 1.0001, "optimal"),
        (51.3 / 0.969, "within 3.1 % of the bound"),
        (51.3 / 0.9689, "within 3.2 % of the bound"),
    ],
)
def test_the_gap_is_said_in_words_that_hold(expected: Prediction, bound: float, words: str) -> None:
    figures_of = {"images_per_s": 51.3, "bound_images_per_s": bound, "bottleneck": "the client"}
    line = gap_line(expected.model_copy(update=figures_of))
    assert line == f"51.3 images/s, {words}; bottleneck: the client"


def test_predicted_and_measured_stand_side_by_side_with_the_error(full: Plan) -> None:
    lines = printed(full)
    assert row(lines, "plan images/s") == "plan images/s 6.77 6.46 +4.8 %"
    assert row(lines, "latency, alone") == "latency, alone 2.70 s 2.86 s −5.7 %"
    assert row(lines, "edge 1") == "edge 1 transfer 22.0 ms 24.9 ms −11.8 %"


def test_what_was_not_predicted_has_no_error(full: Plan) -> None:
    assert full.measurement is not None
    moved = [d.model_copy(update={"stage_index": 1}) for d in full.measurement.devices]
    another = full.measurement.model_copy(update={"devices": tuple(moved), "window": 3})
    rows = compare(changed(full, measurement=another))
    of_pi_0 = [r for r in rows if r.subject == "stage 1 on pi-0"]
    assert [(r.predicted, r.error) for r in of_pi_0] == [(None, None)] * 3
    loaded = next(r for r in rows if r.quantity == "latency, 3 in flight")
    assert (loaded.predicted_text, loaded.error) == ("—", None)
    assert all(r.predicted is None for r in compare(changed(full, prediction=None)))


def test_what_was_not_measured_has_no_error(full: Plan) -> None:
    assert full.measurement is not None
    nothing = {"compute_ms": None, "utilisation": 0.0, "rss_bytes": None}
    idle = tuple(d.model_copy(update=nothing) for d in full.measurement.devices)
    plan = changed(full, measurement=full.measurement.model_copy(update={"devices": idle}))
    rows = [r for r in compare(plan) if r.subject.startswith("stage")]
    assert len(rows) == 12
    assert {r.error for r in rows} == {None}


def test_show_prints_what_the_plan_holds_and_nothing_else(
    run: Run, full: Plan, tmp_path: Path
) -> None:
    make_tiny_plan(tmp_path, devices=())
    bare = run("show", tmp_path / "tiny").out
    assert "predicted" not in bare
    assert "verdict" not in bare
    (tmp_path / "plan.json").write_text(full.to_json())
    out = run("show", tmp_path).out
    for words in ("predicted, one batch", "within 1.7 % of the bound", "recommended", "measured"):
        assert words in out


def test_figures_keep_three_digits_and_their_unit() -> None:
    assert [figures.rate(v) for v in (0.1234, 4.071, 51.34, 99.96, 1204.4)] == [
        *("0.123", "4.07", "51.3", "100", "1,204")
    ]
    assert [figures.ms(v) for v in (0, 0.4249, 9.996, 118.4, 1999, 2345.0, None)] == [
        *("0 ms", "0.425 ms", "10.0 ms", "118 ms", "1,999 ms", "2.35 s", "—")
    ]
    assert [figures.signed_percent(v) for v in (0.031, -0.12, 0.0001, None)] == [
        *("+3.1 %", "−12.0 %", "±0.0 %", "—")
    ]


def test_what_codecs_cost_is_told_beside_the_verification(full: Plan) -> None:
    check = CodecVerification(
        images=40, labelled=0, top1_agreement=0.975, accuracy_drop_points=2.5, max_abs_difference=1
    )
    for labelled, words in (
        (0, "with edge 1 int8, the best class stays on 97.5% of 40 images"),
        (40, "accuracy falls by 2.50 points"),
    ):
        verification = full.verification.model_copy(
            update={"codecs": check.model_copy(update={"labelled": labelled})}
        )
        assert words in verification_line(full.model_copy(update={"verification": verification}))
    assert "best class" not in verification_line(full)
