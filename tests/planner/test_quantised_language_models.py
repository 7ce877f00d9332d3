"""Weights as int8 and int4 in blocks: numbers within bounds, and a perplexity that is true."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from contract.decoder import QuantisedVerification
from contract.errors import SettingsError, VerificationError
from contract.plan import load_plan
from planner.importers.transformers_directory import import_transformers_directory
from planner.language import attention, parameters, rounded
from planner.language.blocks import BLOCK_SIZE, QUANTISED, SCALES, Part, quantise_part
from planner.language.perplexity import (
    MADE_UP_WINDOWS,
    MAX_WINDOWS,
    check_change,
    losses_of,
    made_up_tokens,
    perplexity,
    perplexity_of_graph,
    perplexity_of_reference,
    verify_on_text,
    windows_of,
)
from planner.language.rounded import round_weights
from planner.language.verify import ROUNDED_TOLERANCE, judge_rounded
from shardline.plan_table import perplexity_line, verification_line
from tests.decoder_models import KINDS, save_model, save_tokenizer
from tests.decoder_shards import DecoderShards
from tests.planner.decoders import Exported, exported
from tests.tiny_decoder import DECODING

Bits = Literal[4, 8]
ATTEND = attention._attend


def dequantised(matrix: np.ndarray, bits: Bits) -> tuple[np.ndarray, np.ndarray]:
    """By numpy: the matrix (inputs, outputs) that the blocks stand for, each element's scale."""
    packed, scales = (quantise_part(matrix, bits, part) for part in (QUANTISED, SCALES))
    inputs, outputs = matrix.shape
    if bits == 4:  # two in a byte, the lower half first
        packed = np.stack([packed & 15, packed >> 4], axis=-1)
    whole = packed.reshape(outputs, -1, BLOCK_SIZE).astype(np.float32) - 2 ** (bits - 1)
    steps = np.broadcast_to(scales.reshape(outputs, -1, 1), whole.shape)
    return (
        (whole * steps).reshape(outputs, -1)[:, :inputs].T,
        steps.reshape(outputs, -1)[:, :inputs].T,
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [32, 96, 100])
def test_no_weight_moves_by_more_than_a_step(bits: Bits, inputs: int) -> None:
    matrix = np.random.default_rng(bits).standard_normal((inputs, 48)).astype(np.float32)
    values, steps = dequantised(matrix, bits)
    error = np.abs(values - matrix)
    assert (error <= np.abs(steps) * 1.001).all()
    # Half a step but where the other end of the range is cut off, which is rare.
    assert (error <= np.abs(steps) * 0.501).mean() > 0.9
    assert np.abs(steps).max() <= np.abs(matrix).max() / 2 ** (bits - 1) * 1.001


def run_product(matrix: np.ndarray, x: np.ndarray, bits: Bits) -> np.ndarray:
    """What the operator makes of it, as it stands in the graphs of plans."""
    from planner.language.parameters import Parameter
    from planner.language.quantise import quantise_products

    parameters = {"w": Parameter("w", matrix.shape)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    quantise_products(nodes, parameters, "int4" if bits == 4 else "int8")
    (product,) = nodes
    assert product.op_type == "MatMulNBits"
    arrays = [quantise_part(matrix, bits, part) for part in (QUANTISED, SCALES)]
    kinds = (TensorProto.UINT8, TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", matrix.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", matrix.shape[1]])],
        [
            helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
            for name, kind, array in zip(product.input[1:], kinds, arrays, strict=True)
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 5])
def test_products_differ_from_numpys_by_rounded_activations_at_most(bits: Bits, rows: int) -> None:
    generator = np.random.default_rng(rows)
    matrix = generator.standard_normal((96, 64)).astype(np.float32)
    x = generator.standard_normal((rows, 96)).astype(np.float32)
    values, _ = dequantised(matrix, bits)
    blocks = np.abs(x).reshape(rows, -1, BLOCK_SIZE).max(-1) / 127  # a step of the activations
    weights = np.abs(values).reshape(-1, BLOCK_SIZE, 64).sum(1)  # (blocks, outputs)
    bound = 0.5 * blocks @ weights * 1.01 + 1e-4
    error = np.abs(run_product(matrix, x, bits) - x @ values)
    assert (error <= bound).all()
    assert error.max() > 1e-5 * np.abs(x @ values).max()  # else activations were not rounded


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("quantisation", ["int8", "int4"])
def test_quantised_stages_are_smaller_and_write_alike(
    kind: str, quantisation: str, tmp_path: Path
) -> None:
    model = exported(kind)
    path = save_tokenizer(model.folder)
    decoding = DECODING.model_copy(update={"quantisation": quantisation})
    try:
        plan = model.plan(tmp_path, 2, decoding)
    finally:
        path.unlink()
    plain = model.graph()
    assert plan.plan_id != model.plan(tmp_path / "plain", 2).plan_id
    held = sum(stage.weight_bytes for stage in plan.stages)
    assert held < {"int8": 0.6, "int4": 0.5}[quantisation] * plain.model.weight_bytes + 4 * 320 * 64
    assert load_plan(tmp_path / plan.name).decoding == plan.decoding
    assert plan.decoding is not None
    text = plan.decoding.text
    assert text is not None
    windows = text.tokens / (DECODING.context_tokens - 1)  # of whose tokens the first is given
    assert windows == MAX_WINDOWS
    assert not text.made_up
    change = abs(np.log(text.perplexity_quantised / text.perplexity))
    assert 0 < change < {"int8": 0.1, "int4": 1.0}[quantisation]
    ids = np.random.default_rng(0).integers(3, 320, (2, 20))
    logits = DecoderShards(tmp_path / plan.name, plan, rows=2).feed(ids)
    expected = model.logits(ids)[:, -1]
    correlation = np.corrcoef(logits.ravel(), expected.ravel())[0, 1]
    assert correlation > {"int8": 0.98, "int4": 0.5}[quantisation]


def test_the_perplexity_is_that_of_transformers_own_loss() -> None:
    model = exported("gpt2")
    windows = np.random.default_rng(1).integers(0, 320, (3, 32))
    logits = model.logits(windows).astype(np.float64)
    shifted = logits[:, :-1] - np.log(np.exp(logits[:, :-1]).sum(-1, keepdims=True))
    expected = np.exp(-np.take_along_axis(shifted, windows[:, 1:, None], -1).mean())
    assert perplexity_of_reference(model.imported, windows) == pytest.approx(expected, rel=1e-5)
    # The graph in float32 is the same model: every position of the last block is looked at.
    assert perplexity_of_graph(model.graph(), windows, 1) == pytest.approx(expected, rel=1e-4)


def test_a_model_without_a_tokenizer_is_compared_with_the_original_on_random_tokens(
    tmp_path: Path,
) -> None:
    model = exported("llama")
    decoding = DECODING.model_copy(update={"quantisation": "int8"})
    plan = model.plan(tmp_path, 1, decoding)
    assert plan.decoding is not None
    text = plan.decoding.text
    assert text is not None
    assert text.made_up
    assert text.tokens == MADE_UP_WINDOWS * (DECODING.context_tokens - 1)
    ids = np.array(made_up_tokens(320, MADE_UP_WINDOWS * DECODING.context_tokens))
    windows = ids.reshape(MADE_UP_WINDOWS, -1)
    assert text.perplexity == perplexity_of_reference(model.imported, windows)
    assert 0 < abs(np.log(text.perplexity_quantised / text.perplexity)) < 0.1
    assert "random tokens, for want of a tokenizer.json" in perplexity_line(plan.decoding)


def test_a_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    model = exported("llama")
    decoding = DECODING.model_copy(update={"quantisation": "int8"})
    with pytest.raises(SettingsError, match=r"has no tokenizer\.json to make tokens of it"):
        verify_on_text(model.imported, model.graph(decoding), "a text", 1)


def test_a_quantised_model_that_is_another_one_is_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights scrambled on the way: shards and quantised graph agree, and are both wrong.
    # Weights are looked at first; the perplexity sees it as well.
    original = parameters.quantise_part

    def scrambled(matrix: np.ndarray, bits: Bits, part: Part) -> np.ndarray:
        return original(matrix[:, ::-1] * np.float32(3), bits, part)

    model = exported("llama")
    decoding = DECODING.model_copy(update={"quantisation": "int8", "context_tokens": 80})
    monkeypatch.setattr(parameters, "quantise_part", scrambled)
    with pytest.raises(VerificationError, match=r"in int8: a stored weight differs from the check"):
        model.plan(tmp_path, 1, decoding)
    with pytest.raises(VerificationError, match=r"perplexity in int8 .* Plan with --quantise none"):
        verify_on_text(model.imported, model.graph(decoding), None, 1)
    model.graphs.pop(decoding, None)  # others are not to find it
    assert list(tmp_path.iterdir()) == []


def without_window(*given: Any, sliding_window: int | None = None, **others: Any) -> Any:
    return ATTEND(*given, sliding_window=None, **others)


def with_one_more(*given: Any, sliding_window: int | None = None, **others: Any) -> Any:
    wider = sliding_window if sliding_window is None else sliding_window + 1
    return ATTEND(*given, sliding_window=wider, **others)


@pytest.mark.parametrize("wrong", [without_window, with_one_more])
def test_a_wrong_export_is_no_plan_however_it_is_quantised(
    wrong: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shards and quantised graph agree, and on random tokens the perplexity is much the same.
    folder = save_model(tmp_path / "mistral", "mistral", num_hidden_layers=2)
    monkeypatch.setattr(attention, "_attend", wrong)
    model = Exported(folder, import_transformers_directory(folder))
    (tmp_path / "plans").mkdir()
    for quantisation in ("none", "int8", "int4"):
        decoding = DECODING.model_copy(update={"quantisation": quantisation})
        with pytest.raises(VerificationError, match="the logits of its 2 stages differ from the"):
            model.plan(tmp_path / "plans", 2, decoding)
    assert list((tmp_path / "plans").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantisation", ["int8", "int4"])
def test_quantised_stages_compute_what_transformers_does_with_their_weights(
    kind: str, quantisation: str, tmp_path: Path
) -> None:
    decoding = DECODING.model_copy(update={"quantisation": quantisation})
    plan = exported(kind).plan(tmp_path, 2, decoding)
    check = plan.verification.quantised
    assert check is not None
    assert 0 < check.relative_difference < ROUNDED_TOLERANCE / 1.5 < check.tolerance
    assert check.reference.startswith("transformers ")
    assert load_plan(tmp_path / plan.name).verification == plan.verification
    line = verification_line(plan)
    assert f"the whole model in {quantisation}, block by block; with activations rounded" in line
    assert f"against {check.reference} with the same rounded weights" in line


def test_logits_may_differ_by_a_part_of_their_spread(tmp_path: Path) -> None:
    plan = exported("llama").plan(tmp_path)
    theirs = np.random.default_rng(0).standard_normal((2, 300))
    noise = np.random.default_rng(1).standard_normal((2, 300))
    noise *= theirs.std(-1, keepdims=True) / noise.std(-1, keepdims=True)

    def judged(ours: np.ndarray) -> QuantisedVerification:
        return judge_rounded(plan, [{0: theirs, 7: ours}], [{0: theirs, 7: theirs}], "reference")

    assert judged(theirs + 0.24 * noise).relative_difference == pytest.approx(0.24)
    with pytest.raises(
        VerificationError, match=r"by 0\.26 of their spread, expected at most 0\.25,"
    ):
        judged(theirs + 0.26 * noise)
    with pytest.raises(VerificationError, match="by nan of their spread"):
        judged(np.full_like(theirs, np.nan))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [32, 96, 100])
def test_the_references_weights_are_what_the_blocks_stand_for(
    bits: Bits, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounded, "PIECE_ELEMENTS", 5 * inputs)  # 48 outputs in ten pieces
    matrix = np.random.default_rng(bits).standard_normal((inputs, 48)).astype(np.float32)
    matrix[:, 3] = 0.0
    values, _ = dequantised(matrix, bits)
    packed, scales = (quantise_part(matrix, bits, part) for part in (QUANTISED, SCALES))
    found = matrix.copy()
    round_weights("w", found.T, packed, scales, bits)
    np.testing.assert_array_equal(found, values)
    for broken in (-scales, 2 * scales, np.roll(scales, 1)):
        with pytest.raises(VerificationError, match="w: a stored weight differs from the checkp"):
            round_weights("w", matrix.copy().T, packed, broken, bits)


@pytest.mark.parametrize("after", [250.0, 40.0, float("nan"), float("inf")])
def test_a_perplexity_may_change_by_so_much_either_way(after: float) -> None:
    check_change("m", "int8", 100.0, 199.0)
    check_change("m", "int8", 100.0, 51.0)
    with pytest.raises(VerificationError, match="at most 2 times"):
        check_change("m", "int8", 100.0, after)
    check_change("m", "int4", 100.0, 999.0)
    with pytest.raises(VerificationError, match="--quantise int8 or --quantise none"):
        check_change("m", "int4", 100.0, 1001.0)


def test_losses_and_windows_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    losses = losses_of(logits + 1000, np.array([1, 2]))
    np.testing.assert_allclose(losses, [np.log(4), np.log(1.25)], rtol=1e-4)
    assert perplexity(iter([losses])) == pytest.approx(np.sqrt(5), rel=1e-4)
    assert windows_of(list(range(70)), 32).tolist() == [list(range(32)), list(range(32, 64))]
