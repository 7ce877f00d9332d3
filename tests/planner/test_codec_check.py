"""What codecs do to the answers is measured on the shards themselves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import planner.codec_check
from contract.codec import CODECS, Codec, compress, expand
from contract.errors import WireFormatError
from contract.plan import Plan
from contract.tensor_spec import TensorSpec
from planner.codec_check import CodecCheck, check_codecs
from shards.session import run_session
from tests.tiny import HEIGHT, WIDTH, make_tiny_plan, tiny_answer, tiny_weights

IMAGES = np.random.default_rng(3).integers(0, 256, (50, 1, HEIGHT, WIDTH), dtype=np.uint8)
NO_LABELS = [None] * len(IMAGES)
TRUE = tiny_answer(IMAGES).argmax(axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return make_tiny_plan(folder)


def check(
    folder: Path,
    plan: Plan,
    codecs: Sequence[Codec],
    labels: Sequence[int | None] = NO_LABELS,
) -> CodecCheck:
    return check_codecs(folder / "tiny", plan, codecs, IMAGES, labels, threads=1)


def by_hand(codecs: tuple[Codec, Codec]) -> np.ndarray:
    x = IMAGES.astype(np.float32).reshape(len(IMAGES), -1) / np.float32(255)
    last: Codec = "float32"
    for weight, codec in zip(tiny_weights(), (*codecs, last), strict=True):
        spec = TensorSpec(name="x", dtype="float32", shape=("batch", weight.shape[1]))
        x = np.maximum(x @ weight, 0)
        x = np.asarray(expand(codec, [spec], compress(codec, {"x": x}))["x"])
    return x


def test_without_codecs_nothing_changes(folder: Path, plan: Plan) -> None:
    checked = check(folder, plan, ("float32", "float32"))
    assert checked.max_abs_difference == 0
    assert checked.max_abs_reference > 0.1
    assert (checked.top1_agreement, checked.accuracy_drop_points) == (1, 0)
    assert (checked.images, checked.labelled) == (50, 0)


@pytest.mark.parametrize("first", CODECS)
@pytest.mark.parametrize("second", ["float32", "int8"])
def test_each_cut_has_its_own_codec(folder: Path, plan: Plan, first: Codec, second: Codec) -> None:
    checked = check(folder, plan, (first, second))
    difference = np.abs(by_hand((first, second)) - tiny_answer(IMAGES)).max()
    assert checked.codecs == (first, second)
    assert checked.max_abs_difference == pytest.approx(difference, rel=0.02, abs=1e-6)


def spoil_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 8 images become zeros at the first cut, so that their answer is class 0."""
    calls = []

    def spoilt(codec: Codec, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append(codec)
        factor = np.float16(0 if len(calls) == 1 else 1)
        return {name: tensor * factor for name, tensor in compress(codec, tensors).items()}

    monkeypatch.setattr(planner.codec_check, "compress", spoilt)


WRONG = [index for index in range(8) if TRUE[index] != 0]


def test_answers_that_change_are_points_lost_where_there_are_no_labels(
    folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WRONG
    spoil_the_first_batch(monkeypatch)
    checked = check(folder, plan, ("float16", "float32"))
    assert checked.top1_agreement == pytest.approx(1 - len(WRONG) / 50)
    assert checked.accuracy_drop_points == pytest.approx(100 * len(WRONG) / 50)


def test_labelled_images_that_become_wrong_are_points_lost(
    folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[int | None] = [None] * 50
    for index in (*range(0, 8, 2), *range(20, 36)):
        labels[index] = int(TRUE[index])
    spoil_the_first_batch(monkeypatch)
    checked = check(folder, plan, ("float16", "float32"), labels)
    became_wrong = len([index for index in WRONG if index % 2 == 0])
    assert became_wrong
    assert checked.labelled == 20
    assert checked.accuracy_drop_points == pytest.approx(100 * became_wrong / 20)


def test_labelled_images_that_become_right_are_points_gained(
    folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[int | None] = [0] * 8 + [None] * 42
    spoil_the_first_batch(monkeypatch)
    checked = check(folder, plan, ("float16", "float32"), labels)
    assert checked.accuracy_drop_points == pytest.approx(-100 * len(WRONG) / 8)


def test_more_images_than_may_be_held_at_once_give_the_same(
    folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = check(folder, plan, ("int8", "float16"))
    monkeypatch.setattr(planner.codec_check, "MAX_HELD_BYTES", 1)
    assert check(folder, plan, ("int8", "float16")) == whole


def test_an_activation_that_a_codec_cannot_carry_is_an_error(
    folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(session: object, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = run_session(session, inputs)  # type: ignore[arg-type]
        return {name: tensor + np.float32(np.inf) for name, tensor in outputs.items()}

    monkeypatch.setattr(planner.codec_check, "run_session", broken)
    with pytest.raises(WireFormatError, match="`hidden_1`: nan at"):
        check(folder, plan, ("float32", "int8"))


@pytest.mark.parametrize(("codecs", "labels"), [(("int8",), NO_LABELS), (("int8",) * 2, [1])])
def test_codecs_or_labels_that_do_not_fit_are_an_error(
    folder: Path, plan: Plan, codecs: tuple[Codec, ...], labels: list[int]
) -> None:
    with pytest.raises(ValueError, match="codecs for 2 cuts"):
        check(folder, plan, codecs, labels)
