"""Codecs: golden bytes, round trips within the stated errors, sizes, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.activation import decode, encode
from contract.codec import (
    CODECS,
    SCALE_SUFFIX,
    Codec,
    compress,
    encoded_bytes,
    expand,
    wire_specs,
)
from contract.errors import TensorMismatchError, WireFormatError
from contract.tensor_spec import DType, TensorSpec
from tests.contract.test_activation_format import HEADER

LOSSY: list[Codec] = ["float16", "int8", "int8-per-channel"]
INT8: list[Codec] = ["int8", "int8-per-channel"]
FLOATS: list[DType] = ["float16", "float32", "float64"]
SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", 2, 3))
X = np.array([[[1.0, -2.0, 0.5], [0.0, 0.25, -0.25]], [[0, 0, 0], [3e-8, 100, 70_000]]], np.float32)


def spec_of(array: np.ndarray, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=array.dtype.name, shape=("batch", *array.shape[1:]))


def there_and_back(codec: Codec, array: np.ndarray) -> np.ndarray:
    """Through a message: sent, encoded, decoded, received."""
    message = encode(replace(HEADER, codec=codec), compress(codec, {"x": array}))
    header, tensors = decode(message)
    return np.asarray(expand(header.codec, [spec_of(array)], tensors)["x"])


def tensor_bytes(codec: Codec) -> tuple[list[str], bytes]:
    message = encode(replace(HEADER, codec=codec), compress(codec, {"x": X, "n": np.arange(2)}))
    _, tensors = decode(message)
    described = [f"{name} {t.dtype} {t.shape}" for name, t in tensors.items()]
    return described, message[8 + int.from_bytes(message[:8], "little") :]


def test_the_bytes_of_float16_are_frozen() -> None:
    described, data = tensor_bytes("float16")
    assert described == ["x float16 (2, 2, 3)", "n int64 (2,)"]
    halves = "003c 00c0 0038 0000 0034 00b4 0000 0000 0000 0100 4056 ff7b"  # 3e-8 is one 2^-24 unit
    assert data == bytes.fromhex(halves) + np.arange(2, dtype="<i8").tobytes()


def test_the_bytes_of_int8_are_frozen() -> None:
    described, data = tensor_bytes("int8")
    assert described == ["x int8 (2, 2, 3)", "x.scale float32 (2,)", "n int64 (2,)"]
    scales = np.array([2, 70_000], "<f4") / np.float32(127)
    numbers = "40 81 20 00 10 f0 00 00 00 00 00 7f"  # 63.5 -> 64, 31.75, 15.875: to the even number
    assert data == bytes.fromhex(numbers) + scales.tobytes() + np.arange(2, dtype="<i8").tobytes()


def test_the_bytes_of_int8_per_channel_are_frozen() -> None:
    described, data = tensor_bytes("int8-per-channel")
    assert described == ["x int8 (2, 2, 3)", "x.scale float32 (2, 2)", "n int64 (2,)"]
    scales = np.array([2, 0.25, 0, 70_000], "<f4") / np.float32(127)
    numbers = "40 81 20 00 7f 81 00 00 00 00 00 7f"
    assert data == bytes.fromhex(numbers) + scales.tobytes() + np.arange(2, dtype="<i8").tobytes()


def test_float32_is_no_work_at_all() -> None:
    tensors = {"x": np.array([np.nan, 1])}
    assert compress("float32", tensors) is tensors
    assert expand("float32", [SPEC], tensors) is tensors


def test_only_floating_tensors_are_encoded() -> None:
    others = {
        dtype: np.ones((2, 3), dtype) for dtype in ("uint8", "int8", "int32", "int64", "bool")
    }
    specs = [spec_of(array, name) for name, array in others.items()]
    for codec in LOSSY:
        sent = compress(codec, others)
        assert sent == others
        assert expand(codec, specs, sent) == others
    half = {"x": np.ones((2, 3), np.float16)}
    assert compress("float16", half)["x"] is half["x"]
    assert list(compress("int8", half)) == ["x", "x.scale"]


def arrays(dtype: str = "float32", **limits: Any) -> st.SearchStrategy[np.ndarray]:
    width = 16 if dtype == "float16" else 32
    values = st.floats(allow_nan=False, allow_infinity=False, width=width, **limits)
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
    return hnp.arrays(np.dtype(dtype), shapes, elements=values)


any_floats = st.sampled_from(FLOATS).flatmap(arrays)


@given(any_floats)
@example(np.full((1, 1, 2), np.finfo(np.float32).max, np.float32))
@example(np.full((1, 3), 1e-45, np.float32))
@example(np.full((2, 1, 1, 1), -65504, np.float16))
@example(np.array([2.0**-14, 2.0**-15, -(2.0**-24), 2.0**-25, 65519.9, 65520, -1e30], np.float32))
def test_float16_errs_by_one_part_in_2048(array: np.ndarray) -> None:
    got = there_and_back("float16", array)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    exact = np.clip(array.astype(np.float64), -65504, 65504)
    allowed = np.maximum(2.0**-11 * np.abs(exact), 2.0**-25 * 1.001)
    assert (np.abs(got.astype(np.float64) - exact) <= allowed).all()
    np.testing.assert_array_equal(np.signbit(got), np.signbit(array))


@given(arrays())
def test_float16_is_as_near_as_numpys_own(array: np.ndarray) -> None:
    """Ties go elsewhere; below 2^-14 ours may be wrong by 2^-12 of the smallest half."""
    exact = np.clip(array, -65504, 65504).astype(np.float64)
    ours = np.abs(np.asarray(compress("float16", {"x": array})["x"]).astype(np.float64) - exact)
    numpys = np.abs(exact.astype(np.float16).astype(np.float64) - exact)
    assert (ours <= numpys + 2.0**-36).all()


def test_every_finite_half_comes_back_as_it_was() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    [got] = expand("float16", [spec_of(halves.astype(np.float32))], {"x": halves}).values()
    assert got.dtype == np.float32
    assert got.tobytes() == halves.astype(np.float32).tobytes()
    assert np.asarray(compress("float16", {"x": got})["x"]).tobytes() == halves.tobytes()


@pytest.mark.parametrize("codec", INT8)
@given(array=any_floats)
@example(array=np.full((1, 1, 2), np.finfo(np.float32).max, np.float32))
@example(array=np.array([[[3.4028235e38, -3.4028235e38]], [[1e-38, -1e-45]]], np.float32))
@example(array=np.array([[[1.5e-36, 1.49e-36, 1e-38]]], np.float32))
@example(array=np.full((2, 1, 3), -65504, np.float16))
@example(array=np.array([[1e-5, 1e-7]], np.float16))
def test_int8_errs_by_half_a_step(codec: Codec, array: np.ndarray) -> None:
    got = there_and_back(codec, array)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    channels = 2 if codec == "int8-per-channel" and any(n > 1 for n in array.shape[2:]) else 1
    rows = array.astype(np.float64).reshape(int(np.prod(array.shape[:channels])), -1)
    error = np.abs(got.astype(np.float64).reshape(rows.shape) - rows)
    half_a_step = np.abs(rows).max(axis=1, keepdims=True) / 254
    kind = np.finfo(array.dtype if array.itemsize < 4 else "f4")
    rounding = np.abs(rows) * float(kind.eps) + float(kind.smallest_subnormal) / 2
    assert (error <= np.maximum(half_a_step * 1.0001, 1.5e-36) + rounding).all()
    assert (got[array == 0] == 0).all()


def test_an_image_of_zeros_comes_back_as_zeros() -> None:
    for codec in LOSSY:
        got = there_and_back(codec, np.zeros((3, 4, 5), np.float32))
        assert not got.any()
    assert not np.asarray(compress("int8", {"x": np.zeros((3, 4), np.float32)})["x.scale"]).any()


@pytest.mark.parametrize("codec", LOSSY)
def test_an_image_does_not_depend_on_its_neighbours(codec: Codec) -> None:
    array = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)
    array *= np.array([1, 1000, 1e-3, 7], np.float32).reshape(4, 1, 1, 1)
    together = there_and_back(codec, array)
    for index in range(4):
        alone = there_and_back(codec, array[index : index + 1])
        assert alone.tobytes() == together[index : index + 1].tobytes()


def test_a_channel_does_not_depend_on_its_neighbours() -> None:
    array = np.random.default_rng(0).standard_normal((1, 3, 40)).astype(np.float32)
    loud = array * np.array([1, 1000, 1], np.float32).reshape(1, 3, 1)
    quiet, beside = (there_and_back("int8-per-channel", a)[0, 0] for a in (array, loud))
    assert quiet.tobytes() == beside.tobytes()
    assert np.abs(there_and_back("int8", loud)[0, 0] - loud[0, 0]).max() > 1


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("shape", [(3, 40_000), (2, 5, 9_000), (7, 1_000, 33), (2, 40_000, 1)])
def test_a_tensor_larger_than_a_block_is_the_same_piece_by_piece(
    codec: Codec, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    got = there_and_back(codec, array)
    assert np.abs(got - array).max() < 0.03
    for place in [(0, 0), (-1, -1), (1, shape[1] // 2)]:
        assert np.any(got[place] != 0)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda a: a.transpose(0, 2, 1), id="transposed"),
        pytest.param(lambda a: a[::2, ::-1], id="strided"),
        pytest.param(np.asfortranarray, id="fortran order"),
        pytest.param(lambda a: a.astype(">f4"), id="big-endian"),
    ],
)
def test_arrays_of_any_layout_are_encoded(codec: Codec, view: Any) -> None:
    array = view(np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32))
    plain = np.ascontiguousarray(array, np.float32)
    for ours, expected in zip(
        compress(codec, {"x": array}).values(), compress(codec, {"x": plain}).values(), strict=True
    ):
        assert np.asarray(ours).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("codec", CODECS)
@given(array=any_floats, batch=st.integers(1, 4))
def test_what_travels_is_of_the_wire_specs_and_their_size(
    codec: Codec, array: np.ndarray, batch: int
) -> None:
    array = np.repeat(array[:1], batch, axis=0)
    extra = np.ones((batch, 2), np.uint8)
    specs = [spec_of(array), spec_of(extra, "extra")]
    sent = compress(codec, {"x": array, "extra": extra})
    assert all(spec.fits(sent[spec.name]) for spec in wire_specs(codec, specs))
    assert [spec.name for spec in wire_specs(codec, specs)] == list(sent)
    assert encoded_bytes(codec, specs, batch) == sum(tensor.nbytes for tensor in sent.values())


def test_a_channel_of_one_value_has_no_scale_of_its_own() -> None:
    for shape in [("batch", 7), ("batch", 7, 1, 1)]:
        spec = TensorSpec(name="x", dtype="float32", shape=shape)
        assert encoded_bytes("int8-per-channel", [spec], 3) == 3 * (7 + 4)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 7, 2, 1))
    assert encoded_bytes("int8-per-channel", [spec], 3) == 3 * (14 + 4 * 7)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_value_that_is_not_finite_is_refused(codec: Codec, value: float, dtype: str) -> None:
    array = np.ones((2, 3, 4), dtype)
    array[1, 2, 3] = value
    if codec == "float16" and dtype == "float16":
        return  # travels as it is
    with pytest.raises(WireFormatError, match=r"`x`: -?(nan|inf) at \(1, 2, 3\)"):
        compress(codec, {"x": array})


def test_a_value_too_large_for_float32_is_refused_by_int8_and_clipped_by_float16() -> None:
    array = np.array([[1.0, -1e300]])
    with pytest.raises(WireFormatError, match=r"-inf at \(0, 1\)"):
        compress("int8", {"x": array})
    assert there_and_back("float16", array).tolist() == [[1.0, -65504.0]]


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_an_empty_tensor_is_refused(codec: Codec, shape: tuple[int, ...]) -> None:
    with pytest.raises(WireFormatError, match="no values"):
        compress(codec, {"x": np.zeros(shape, np.float32)})


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_tensor_with_the_name_of_a_scale_is_refused(order: int, dtype: str) -> None:
    pairs = [("x", np.ones((1, 2), np.float32)), ("x" + SCALE_SUFFIX, np.ones(1, dtype))]
    with pytest.raises(WireFormatError, match="scales"):
        compress("int8", dict(pairs[::order]))


def sent(codec: Codec, **changes: object) -> dict[str, Any]:
    tensors: dict[str, Any] = dict(compress(codec, {"x": X})) | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


ONES = np.ones((2, 2, 3), np.float32)
SCALES = np.ones((2, 2), np.float32)
MISMATCHED = {
    "float16": {
        "nothing": {"x": None},
        "float32 instead": {"x": ONES},
        "int8 instead": {"x": ONES.astype(np.int8)},
        "another shape": {"x": ONES.astype(np.float16)[:, :, :2]},
        "another rank": {"x": ONES.astype(np.float16)[0]},
        "no image": {"x": ONES.astype(np.float16)[:0]},
        "a scale too many": {"x.scale": SCALES},
    },
    "int8-per-channel": {
        "no numbers": {"x": None},
        "no scales": {"x.scale": None},
        "nothing": {"x": None, "x.scale": None},
        "float32 instead": {"x": ONES, "x.scale": None},
        "uint8 instead": {"x": ONES.astype(np.uint8)},
        "another shape": {"x": ONES.astype(np.int8)[:, :1]},
        "another number of images": {"x": ONES.astype(np.int8)[:1]},
        "scales of the images only": {"x.scale": SCALES[:, 0]},
        "one scale": {"x.scale": SCALES[:1, :1]},
        "a scale of nothing": {"x.scale": SCALES[0, 0]},
        "scales for another batch": {"x.scale": np.ones((3, 2), np.float32)},
        "scales in float64": {"x.scale": SCALES.astype(np.float64)},
        "scales in float16": {"x.scale": SCALES.astype(np.float16)},
        "another tensor": {"y": ONES},
        "scales for it too": {"y.scale": SCALES},
    },
}


@pytest.mark.parametrize(
    ("codec", "kind"), [(codec, kind) for codec, kinds in MISMATCHED.items() for kind in kinds]
)
def test_tensors_that_are_not_the_codecs_are_refused(codec: Codec, kind: str) -> None:
    with pytest.raises(TensorMismatchError, match=f"here, codec {codec}.*: expected tensor|batch"):
        expand(codec, [SPEC], sent(codec, **MISMATCHED[codec][kind]), "here")


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1e-30, -1.0])
@pytest.mark.parametrize("codec", INT8)
def test_a_scale_that_is_none_is_refused(codec: Codec, scale: float) -> None:
    tensors = sent(codec)
    tensors["x.scale"] = scales = tensors["x.scale"].copy()
    scales.reshape(-1)[-1] = scale
    with pytest.raises(WireFormatError, match="here, tensor `x`: expected scales"):
        expand(codec, [SPEC], tensors, "here")


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7C01, 0xFE00, 0xFFFF, 0x7FFF])
def test_a_half_that_is_not_finite_is_refused(bits: int) -> None:
    tensors = sent("float16")
    tensors["x"] = halves = tensors["x"].copy()
    halves.reshape(-1).view(np.uint16)[3] = bits
    with pytest.raises(WireFormatError, match="here, tensor `x`: expected finite"):
        expand("float16", [SPEC], tensors, "here")


@given(hnp.arrays(np.int8, (2, 2, 3)), hnp.arrays(np.float32, (2, 2)))
@example(np.full((2, 2, 3), -128, np.int8), np.full((2, 2), np.finfo(np.float32).max, np.float32))
def test_any_numbers_and_scales_are_expanded_or_refused(
    numbers: np.ndarray, scales: np.ndarray
) -> None:
    try:
        [got] = expand("int8-per-channel", [SPEC], {"x": numbers, "x.scale": scales}).values()
    except WireFormatError:
        assert not (scales >= 0).all() or not np.isfinite(scales).all()
        return
    assert got.shape == (2, 2, 3)
    assert not np.isnan(got).any()
