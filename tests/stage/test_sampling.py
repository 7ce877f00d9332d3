"""Each way of choosing a token, against cases that a person can compute."""

import itertools

import numpy as np
import pytest

from contract.decoder import Finish, Sampling
from contract.errors import EngineError
from stage.sampling import _candidates, _nucleus, choose, finish_of, uniform

NOTHING = np.zeros(0, np.int64)
WARM = Sampling(temperature=1.0)


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def chosen(logits: np.ndarray, sampling: Sampling, count: int = 4000) -> np.ndarray:
    """Shares of each token over many positions."""
    tokens = [choose(logits, NOTHING, sampling, position) for position in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def kept(logits: np.ndarray, sampling: Sampling) -> list[int]:
    ids, _weights = _candidates(logits, sampling)
    return [int(token) for token in ids]


def test_temperature_zero_takes_the_first_of_the_best() -> None:
    logits = np.array([0.0, 2.0, -1.0, 2.0], np.float32)
    assert choose(logits, NOTHING, Sampling(), 5) == 1


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    shares = chosen(logits_of(0.5, 0.2, 0.25, 0.05), WARM)
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.25, 0.05], atol=0.03)


def test_temperature_divides_the_logits() -> None:
    """Probabilities 0.8 and 0.2 at temperature 2: in the ratio of their roots, 2 to 1."""
    shares = chosen(logits_of(0.8, 0.2), Sampling(temperature=2.0))
    np.testing.assert_allclose(shares, [2 / 3, 1 / 3], atol=0.03)


def test_top_k_leaves_the_best_ones_and_their_equals() -> None:
    logits = np.array([1.0, 3.0, 2.0, 2.0, 0.0], np.float32)
    left = {k: kept(logits, Sampling(1.0, top_k=k)) for k in (0, 1, 2, 3, 4, 5, 9)}
    assert left[0] == left[5] == left[9] == [0, 1, 2, 3, 4]
    assert left[1] == [1]
    assert left[2] == left[3] == [1, 2, 3]
    assert left[4] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("share", "left"),
    [
        (0.4, [2]),
        (0.5, [2]),
        (0.51, [0, 2]),
        (0.8, [0, 2]),
        (0.81, [0, 2, 3]),
        (0.96, [0, 1, 2, 3]),
    ],
)
def test_top_p_leaves_the_fewest_that_have_the_share(share: float, left: list[int]) -> None:
    """0.5, 0.3, 0.15, 0.05 in the order of tokens 2, 0, 3, 1."""
    weights = np.array([0.3, 0.05, 0.5, 0.15]) * 8  # proportional is enough; exact in binary
    assert _nucleus(weights, share).tolist() == left


def test_top_p_takes_the_lower_token_of_equals_and_one_at_least() -> None:
    assert _nucleus(np.ones(4), 0.5).tolist() == [0, 1]
    assert _nucleus(np.ones(4), 1e-9).tolist() == [0]


def test_the_nucleus_of_a_flat_vocabulary_is_found_too() -> None:
    weights = np.ones(50_000)
    weights[-1] = 1.5
    nucleus = _nucleus(weights, 0.9)
    assert len(nucleus) == pytest.approx(45_000, abs=1)
    assert nucleus[-1] == 49_999
    assert nucleus[:5].tolist() == [0, 1, 2, 3, 4]


def test_top_p_is_a_share_of_what_top_k_has_left() -> None:
    """Of 0.4, 0.3, 0.2, 0.1 the best two are 4/7 and 3/7: 0.55 of that is the first alone."""
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(logits, Sampling(1.0, top_k=2, top_p=0.55)) == [0]
    assert kept(logits, Sampling(1.0, top_k=0, top_p=0.55)) == [0, 1]


def test_top_p_is_judged_after_temperature() -> None:
    """0.8 and 0.2 at temperature 2 are 2/3 and 1/3."""
    logits = logits_of(0.8, 0.2)
    assert kept(logits, Sampling(1.0, top_p=0.75)) == [0]
    assert kept(logits, Sampling(2.0, top_p=0.75)) == [0, 1]


def test_the_penalty_divides_positive_and_multiplies_negative_logits_once_a_token() -> None:
    logits = np.array([3.0, 2.0, -1.0, -1.5], np.float32)
    held = np.array([0, 2, 0, 0], np.int64)
    for penalty, best in ((1.0, 0), (1.4, 0), (1.6, 1)):
        assert choose(logits, held, Sampling(repetition_penalty=penalty), 4) == best
    only_negative = np.array([-2.0, -1.0, -1.5], np.float32)
    assert choose(only_negative, np.array([1]), Sampling(repetition_penalty=1.4), 1) == 1
    assert choose(only_negative, np.array([1]), Sampling(repetition_penalty=1.6), 1) == 2
    assert logits.tolist() == [3.0, 2.0, -1.0, -1.5], "what it was given is as before"


def test_a_choice_depends_on_seed_and_position_alone() -> None:
    logits = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    draws = {
        (seed, position): choose(logits, NOTHING, Sampling(1.0, seed=seed), position)
        for seed, position in itertools.product(range(20), range(20))
    }
    again = {
        (seed, position): choose(logits, NOTHING, Sampling(1.0, seed=seed), position)
        for seed, position in reversed(draws)
    }
    assert draws == again
    assert len(set(draws.values())) > 200


def test_the_numbers_drawn_are_the_same_on_every_machine() -> None:
    """Frozen: another attempt may run on another board. Philox4x64-10, key (seed, position)."""
    assert [uniform(*key) for key in ((0, 0), (0, 1), (1, 0), (2**53, 123_456))] == FROZEN
    draws = [uniform(7, position) for position in range(20_000)]
    assert 0 <= min(draws) < 0.001
    assert 0.999 < max(draws) < 1
    assert np.mean(draws) == pytest.approx(0.5, abs=0.01)


FROZEN = [0.011546754286331562, 0.8133540609793564, 0.3035680343067586, 0.6860013535509331]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float) -> None:
    with pytest.raises(EngineError, match="position 9"):
        choose(np.array([0.0, value], np.float32), NOTHING, WARM, 9)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-300),
        Sampling(temperature=999_999.0, top_p=1e-300),
        Sampling(1.0, repetition_penalty=1e-300),
        Sampling(1.0, repetition_penalty=999_999.0, top_k=2**53, top_p=0.999999),
    ],
)
def test_values_at_the_edge_of_what_may_travel_choose_some_token(sampling: Sampling) -> None:
    logits = np.array([-3e38, 3e38, 1.0, -np.inf], np.float32)
    assert choose(logits, np.array([0, 1, 2]), sampling, 3) in range(4)


def test_a_sequence_ends_by_an_end_token_or_its_limit_or_the_caches_room() -> None:
    def ends(token: int, position: int, limit: int) -> Finish:
        return finish_of(token, position, Sampling(max_position=limit), (7, 9), 20)

    assert ends(9, 3, 4) is Finish.END_TOKEN
    assert ends(8, 3, 5) is Finish.NOT_YET
    assert ends(8, 3, 4) is Finish.MAX_POSITION
    assert ends(8, 18, 0) is Finish.NOT_YET
    assert ends(8, 19, 0) is ends(8, 19, 1000) is Finish.MAX_POSITION
