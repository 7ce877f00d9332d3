"""Weights as int8 and int4 in blocks: numbers within bounds, and a perplexity that is true."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from contract.errors import SettingsError, VerificationError
from contract.plan import load_plan
from planner.language import parameters
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
from shardline.plan_table import perplexity_line
from tests.decoder_models import save_tokenizer
from tests.decoder_shards import DecoderShards
from tests.planner.decoders import exported
from tests.tiny_decoder import DECODING

Bits = Literal[4, 8]


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
    original = parameters.quantise_part

    def scrambled(matrix: np.ndarray, bits: Bits, part: Part) -> np.ndarray:
        return original(matrix[:, ::-1] * np.float32(3), bits, part)

    model = exported("llama")
    decoding = DECODING.model_copy(update={"quantisation": "int8", "context_tokens": 80})
    monkeypatch.setattr(parameters, "quantise_part", scrambled)
    with pytest.raises(VerificationError, match=r"perplexity in int8 .* Plan with --quantise none"):
        model.plan(tmp_path, 1, decoding)
    model.graphs.pop(decoding, None)  # others are not to find it
    assert list(tmp_path.iterdir()) == []


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
