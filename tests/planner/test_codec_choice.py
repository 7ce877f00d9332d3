"""Which codecs are tried, which cuts go back to a milder one, and what is taken in the end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from contract.codec import CODECS, Codec
from contract.errors import WireFormatError
from contract.plan import compute_plan_id
from planner.codec_check import CodecCheck
from planner.codec_choice import (
    BY_LOSS,
    Assignment,
    choose_codecs,
    codec_candidates,
    relax_codecs,
    with_codecs,
    work_bytes,
)
from tests.tiny import make_tiny_plan

F32, F16, I8C, I8 = BY_LOSS


def by_table(*rates: float) -> Callable[[Codec], float]:
    return lambda codec: dict(zip(BY_LOSS, rates, strict=True))[codec]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        pytest.param((10, 10, 10, 10), [], id="nothing is gained"),
        pytest.param((10, 10.1, 10.1, 10.1), [], id="one per cent is not enough"),
        pytest.param((10, 9, 8, 7), [], id="all are slower"),
        pytest.param((10, 12, 14, 16), [I8, I8C, F16], id="the fastest first"),
        pytest.param((10, 12, 15.9, 16), [I8C, I8, F16], id="as fast, so the milder first"),
        pytest.param((10, 16, 16, 16), [F16, I8C, I8], id="the mildest of equals"),
        pytest.param((10, 12, 14, 10), [I8C, F16], id="one is not worth it"),
        pytest.param((0, 0, 1, 2), [I8, I8C], id="only a codec makes it possible"),
    ],
)
def test_codecs_are_tried_by_what_they_gain(rates: tuple[float, ...], expected: list[str]) -> None:
    assert codec_candidates(by_table(*rates)) == expected


def slowest(**limits: dict[Codec, float]) -> Callable[[Assignment], float]:
    """The rate that the slowest cut allows."""
    cuts = list(limits.values())
    return lambda codecs: min(limit[codec] for limit, codec in zip(cuts, codecs, strict=True))


NARROW: dict[Codec, float] = {F32: 5, F16: 9, I8C: 19, I8: 20}
MIDDLE: dict[Codec, float] = {F32: 12, F16: 25, I8C: 50, I8: 50}
WIDE: dict[Codec, float] = {F32: 100, F16: 100, I8C: 100, I8: 100}


def test_a_cut_that_does_not_matter_goes_back_to_a_milder_codec() -> None:
    rate = slowest(a=NARROW, b=WIDE, c=MIDDLE)
    assert relax_codecs((I8, I8, I8), rate) == (I8, F32, F16)
    assert relax_codecs((F16, F16, F16), rate) == (F16, F32, F32)
    assert relax_codecs((I8C,), slowest(a=NARROW)) == (I8C,)


def test_the_cuts_together_lose_no_more_than_one_per_cent() -> None:
    def rate(codecs: Assignment) -> float:
        return 1000 - 6 * codecs.count(F32)  # one costs 0.6 %, two 1.2 %

    assert relax_codecs((I8, I8, I8), rate).count(F32) == 1


def found(codecs: Assignment, drop: float) -> CodecCheck:
    return CodecCheck(codecs, 100, 100, 1 - drop / 100, drop, 0.1, 1.0)


class Checks:
    """Answers with the drop of the lossiest codec, and remembers what it was asked."""

    def __init__(self, *drops: float) -> None:
        self._drops = dict(zip(BY_LOSS, drops, strict=True))
        self.asked: list[Assignment] = []

    def __call__(self, codecs: Assignment) -> CodecCheck:
        self.asked.append(codecs)
        return found(codecs, max(self._drops[codec] for codec in codecs))


def test_the_fastest_codec_that_answers_well_is_taken() -> None:
    checks = Checks(0, 0, 0.5, 3)
    choice = choose_codecs(2, slowest(a=NARROW, b=NARROW), checks, max_drop_points=1)
    assert choice.codecs == (I8C, I8C)
    assert choice.check == found((I8C, I8C), 0.5)
    assert checks.asked == [(I8, I8), (I8C, I8C)]
    assert choice.rejected == (
        "int8: accuracy falls by 3.00 points on 100 images, at most 1 are allowed",
    )


def test_what_is_taken_was_checked_as_it_is() -> None:
    checks = Checks(0, 0, 0, 0)
    choice = choose_codecs(3, slowest(a=NARROW, b=WIDE, c=MIDDLE), checks, max_drop_points=0)
    assert checks.asked == [(I8, I8, I8), (I8, F32, F16)]
    assert choice.codecs == (I8, F32, F16)
    assert choice.check is not None
    assert choice.check.codecs == choice.codecs


def test_a_milder_assignment_that_answers_worse_is_not_taken() -> None:
    def check(codecs: Assignment) -> CodecCheck:
        return found(codecs, 0 if codecs == (I8, I8) else 5)

    choice = choose_codecs(2, slowest(a=NARROW, b=WIDE), check, max_drop_points=1)
    assert choice.codecs == (I8, I8)
    assert "int8, float32: accuracy falls" in choice.rejected[0]


def test_nothing_is_taken_when_every_codec_answers_badly() -> None:
    choice = choose_codecs(2, slowest(a=NARROW, b=NARROW), Checks(0, 9, 9, 9), max_drop_points=1)
    assert (choice.codecs, choice.check) == ((F32, F32), None)
    assert len(choice.rejected) == 3


def test_nothing_is_checked_where_nothing_is_gained() -> None:
    for rate, cuts in ((slowest(a=WIDE), 1), (lambda _codecs: 1.0, 0)):
        checks = Checks(0, 0, 0, 0)
        choice = choose_codecs(cuts, rate, checks, max_drop_points=1)
        assert choice.codecs == (F32,) * cuts
        assert checks.asked == []


def test_a_codec_that_cannot_carry_the_activations_is_passed_over() -> None:
    def check(codecs: Assignment) -> CodecCheck:
        if I8 in codecs:
            raise WireFormatError("inf at (0, 1)")
        return found(codecs, 0)

    choice = choose_codecs(1, slowest(a=NARROW), check, max_drop_points=1)
    assert choice.codecs == (I8C,)
    assert choice.rejected == ("int8: inf at (0, 1)",)


def test_a_codec_costs_more_than_it_saves_on_a_small_message() -> None:
    assert work_bytes(F32, 5_000) == 5_000
    assert all(work_bytes(codec, 5_000) > 5_000 for codec in BY_LOSS[1:])


def test_a_codec_counts_more_than_its_bytes_and_less_than_none() -> None:
    counted = {codec: work_bytes(codec, 1_000_000) for codec in CODECS}
    assert counted[F32] == 1_000_000
    assert 500_000 < counted[F16] < 1_000_000
    assert 250_000 < counted[I8] < counted[I8C] < counted[F16]


def test_stages_get_their_codecs_and_the_results_stay_as_they_are(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path)
    stages = with_codecs(plan.stages, (I8, F16))
    assert [stage.codec for stage in stages] == [I8, F16, F32]
    assert with_codecs(stages, (F32, F32)) == plan.stages
    assert compute_plan_id(plan.model.digest, stages) != plan.plan_id
    with pytest.raises(ValueError, match="zip"):
        with_codecs(plan.stages, (I8,))
