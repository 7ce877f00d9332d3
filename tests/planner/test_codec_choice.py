"""Which codecs are tried, which cuts go back to a milder one, and what is taken in the end."""

from collections.abc import Callable

import pytest

from contract.codec import CODECS, Codec
from planner.codec_choice import (
    BY_LOSS,
    Assignment,
    codec_candidates,
    relax_codecs,
    work_bytes,
)

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


def test_a_codec_costs_more_than_it_saves_on_a_small_message() -> None:
    assert work_bytes(F32, 5_000) == 5_000
    assert all(work_bytes(codec, 5_000) > 5_000 for codec in BY_LOSS[1:])


def test_a_codec_counts_more_than_its_bytes_and_less_than_none() -> None:
    counted = {codec: work_bytes(codec, 1_000_000) for codec in CODECS}
    assert counted[F32] == 1_000_000
    assert 500_000 < counted[F16] < 1_000_000
    assert 250_000 < counted[I8] < counted[I8C] < counted[F16]
