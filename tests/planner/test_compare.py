"""What counts as equal, and what counts as having been compared at all."""

import numpy as np
import pytest

from planner.compare import compare
from planner.sample_inputs import sample_images

REFERENCE = {"output": np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]], np.float32)}


def changed(**values: float) -> dict[str, np.ndarray]:
    answer = REFERENCE["output"].copy()
    for place, value in values.items():
        answer[int(place[1]), int(place[2])] = value
    return {"output": answer}


def test_equal_answers_are_equal_and_conclusive() -> None:
    comparison = compare(REFERENCE, REFERENCE)
    assert comparison.equal
    assert comparison.conclusive
    assert comparison.max_abs_reference == 3
    assert comparison.spread_between_images == 3
    assert comparison.top1_agreement == 1


@pytest.mark.parametrize(("value", "equal"), [(1.00029, True), (1.00031, False), (0.99969, False)])
def test_the_tolerance_is_a_share_of_the_largest_value(value: float, equal: bool) -> None:
    assert compare(changed(p00=value), REFERENCE).equal is equal


def test_nan_is_never_equal() -> None:
    assert not compare(changed(p00=np.nan), REFERENCE).equal
    assert not compare(REFERENCE, changed(p00=np.nan)).equal


def test_top1_agreement_is_the_share_of_images() -> None:
    assert compare(changed(p00=9), REFERENCE).top1_agreement == 0.5


def test_almost_zero_proves_nothing() -> None:
    tiny = {"output": REFERENCE["output"] * 1e-5}
    assert compare(tiny, tiny).equal
    assert not compare(tiny, tiny).conclusive


def test_one_answer_for_all_images_proves_nothing() -> None:
    same = {"output": np.ones((4, 5), np.float32)}
    assert not compare(same, same).conclusive


def test_a_difference_in_any_output_counts() -> None:
    two = {**REFERENCE, "boxes": np.ones((2, 4), np.float32)}
    other = {**REFERENCE, "boxes": np.zeros((2, 4), np.float32)}
    assert compare(other, two).max_abs_difference == 1


def test_different_outputs_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare({"logits": REFERENCE["output"]}, REFERENCE)
    with pytest.raises(ValueError, match="compared with"):
        compare({"output": REFERENCE["output"][:1]}, REFERENCE)


def test_sample_images_are_reproducible_and_differ() -> None:
    images = sample_images(4, 3, 32, 40, seed=5)
    assert images.shape == (4, 3, 32, 40)
    assert images.dtype == np.uint8
    assert (images == sample_images(4, 3, 32, 40, seed=5)).all()
    assert (images != sample_images(4, 3, 32, 40, seed=6)).any()
    contrasts = images.reshape(4, -1).std(axis=1)
    assert contrasts.max() > 1.5 * contrasts.min()
