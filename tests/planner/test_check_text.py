"""A written text is judged by the whole model's logits."""

import numpy as np

from planner.language.check_text import compare

WHOLE = np.array([[0.0, 1.0, 3.0], [2.0, 1.999, -1.0], [5.0, 0.0, 0.0]], np.float32)


def test_the_whole_model_s_own_tokens_are_right() -> None:
    found = compare(WHOLE, WHOLE + np.float32(1e-4), np.array([2, 0, 0]))
    assert (found.tokens, found.others, found.failures) == (3, 0, [])
    np.testing.assert_allclose(found.max_abs_difference, 1e-4, rtol=1e-2)


def test_a_near_tie_is_counted_and_no_failure() -> None:
    found = compare(WHOLE, WHOLE, np.array([2, 1, 0]))
    assert (found.others, found.near_ties, found.failures) == (1, 1, [])


def test_another_token_is_a_failure() -> None:
    found = compare(WHOLE, WHOLE, np.array([1, 1, 0]))
    assert (found.others, found.near_ties) == (2, 1)
    assert found.failures == ["1 of 3 tokens are others than the whole model's"]


def test_other_logits_are_a_failure_even_where_the_tokens_are_right() -> None:
    (said,) = compare(WHOLE, WHOLE + np.float32(2e-3), np.array([2, 0, 0])).failures
    assert "differ from the whole model's by 0.002" in said


def test_logits_that_are_no_numbers_are_a_failure() -> None:
    assert compare(WHOLE, WHOLE * np.float32(np.nan), np.array([2, 0, 0])).failures
