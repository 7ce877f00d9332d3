"""Codecs: how the outputs of a stage travel. Pure numpy, no message and no socket.

    float32           as they are, whatever their dtype
    float16           IEEE 754 half precision: half the bytes
    int8              whole numbers -127 to 127 and one float32 scale for each image: a quarter
    int8-per-channel  the same with one scale for each image and channel (axis 1)

A value of the int8 codecs is ``number * scale``. A scale belongs to one image, so that an answer
never depends on which images share a batch. Scales are a tensor of their own, ``<name>.scale``.
Only floating tensors are encoded, and float16 ones only by the int8 codecs; all others travel as
they are. Specification: docs/wire-format.md; reasons and numbers: docs/adr/0020.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from contract.errors import WireFormatError
from contract.tensor_spec import Tensors, TensorSpec, check_tensors

Codec = Literal["float32", "float16", "int8", "int8-per-channel"]
"""How an activation travels: as it is, in half precision, or in 8 bits with a scale for each image
or for each channel of each image."""

CODECS: tuple[Codec, ...] = get_args(Codec)
SCALE_SUFFIX = ".scale"
LARGEST_HALF = 65504.0

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
_WIDER_THAN_HALF = frozenset({"float32", "float64"})
_FLOATING = _WIDER_THAN_HALF | {"float16"}
_STEPS = np.float32(127)
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / _STEPS, np.float32(0))  # x 127 is finite
_SMALLEST_SCALE = np.finfo(np.float32).tiny
_BLOCK = 32_768  # elements: what a block needs stays in the cache of a small processor

# A float32 times 2^-112 has the bits of its half precision at bits 13 to 27.
_TO_HALF = np.float32(2.0**-112)
_FROM_HALF = np.float32(2.0**112)
_ROUND, _SIGN, _THREE, _SIXTEEN = (np.uint32(n) for n in (0x1000, 0x8000_0000, 3, 16))
_SIGN_AND_HALF = np.int32(-0x7000_0001)  # 0x8FFFFFFF


def wire_specs(codec: Codec, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What travels for tensors of ``specs``: names, dtypes and shapes of :func:`compress`."""
    return _wire_specs(codec, tuple(specs))


@lru_cache(maxsize=256)  # a stage asks for the same ones with every message
def _wire_specs(codec: Codec, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    sent: list[TensorSpec] = []
    for spec in specs:
        if codec == "float32" or not _is_encoded(codec, spec.dtype):
            sent.append(spec)
        elif codec == "float16":
            sent.append(TensorSpec(name=spec.name, dtype="float16", shape=spec.shape))
        else:
            scaled = spec.shape[: _scaled_dimensions(codec, spec.shape)]
            sent.append(TensorSpec(name=spec.name, dtype="int8", shape=spec.shape))
            sent.append(TensorSpec(name=spec.name + SCALE_SUFFIX, dtype="float32", shape=scaled))
    return tuple(sent)


def encoded_bytes(codec: Codec, specs: Sequence[TensorSpec], batch: int, tokens: int = 1) -> int:
    """Bytes of all tensors of a message of ``batch`` images, exactly; the header comes on top.

    ``tokens``: of each sequence, for a language model.
    """
    return sum(spec.bytes_of(batch, tokens) for spec in wire_specs(codec, specs))


def compress(codec: Codec, tensors: Tensors) -> Tensors:
    """What travels for ``tensors``, scales included; for float32 the very same mapping.

    Errors of a value x, each at most: float16 2^-11 |x| (2^-25 below 2^-14; what is beyond 65504
    becomes 65504); int8 half a step, which is the largest |x| of the image (or channel) / 254, and
    1.5e-36 where that step is no normal float32. Zero stays zero.

    Raises:
        WireFormatError: a value is infinite or not a number, a tensor is empty, or a tensor has
            the name of another one's scales.
    """
    if codec == "float32":
        return tensors
    sent: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if not _is_encoded(codec, tensor.dtype.name):
            parts: dict[str, Array] = {name: tensor}
        elif not tensor.size:
            raise WireFormatError(
                f"tensor `{name}`: shape {tensor.shape} has no values, expected at least one image"
            )
        elif codec == "float16":
            parts = {name: _to_half(name, tensor)}
        else:
            numbers, scales = _to_int8(name, tensor, _scaled_dimensions(codec, tensor.shape))
            parts = {name: numbers, name + SCALE_SUFFIX: scales}
        if not sent.keys().isdisjoint(parts):
            raise WireFormatError(
                f"tensor `{name}`: another tensor travels under its name or that of its scales; "
                "use the codec float32, or another cut"
            )
        sent.update(parts)
    return sent


def expand(
    codec: Codec, specs: Sequence[TensorSpec], tensors: Tensors, where: str = "activation"
) -> Tensors:
    """Inverse of :func:`compress`: tensors of ``specs``; for float32 the very same mapping.

    ``where`` names the message in errors. What is returned is of the names, dtypes and shapes of
    ``specs``, except for float32, where nothing is looked at.

    Raises:
        TensorMismatchError: a tensor or its scales are missing, of another dtype or shape, or there
            are tensors too many.
        WireFormatError: a scale is negative or not finite, or a half-precision value is not finite.
    """
    if codec == "float32":
        return tensors
    check_tensors(f"{where}, codec {codec}", wire_specs(codec, specs), tensors)
    expanded: dict[str, Array] = {}
    for spec in specs:
        tensor = tensors[spec.name]
        if not _is_encoded(codec, spec.dtype):
            expanded[spec.name] = tensor
            continue
        place = f"{where}, tensor `{spec.name}`"
        if codec == "float16":
            values = _from_half(place, tensor)
        else:
            values = _from_int8(place, tensor, tensors[spec.name + SCALE_SUFFIX])
        expanded[spec.name] = values.astype(spec.dtype, copy=False)
    return expanded


def _is_encoded(codec: Codec, dtype: str) -> bool:
    return dtype in (_WIDER_THAN_HALF if codec == "float16" else _FLOATING)


def _scaled_dimensions(codec: Codec, shape: Sequence[object]) -> int:
    """How many leading dimensions have a scale for each index: the image, or image and channel.

    A channel of one value would take five bytes instead of four: then the image's scale is used.
    """
    per_channel = codec == "int8-per-channel" and any(size != 1 for size in shape[2:])
    return min(2 if per_channel else 1, len(shape))


def _to_half(name: str, tensor: Array) -> npt.NDArray[np.float16]:
    """Nearest half precision, ties away from zero: twice as fast as numpy's own."""
    values = _as_float32(tensor)
    if not (values.max() <= LARGEST_HALF and values.min() >= -LARGEST_HALF):
        _check_finite(name, tensor, "float16")
        values = np.clip(tensor, -LARGEST_HALF, LARGEST_HALF).astype(np.float32)
    flat = values.reshape(-1)
    half = np.empty(flat.shape, np.uint16)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        bits = (block * _TO_HALF).view(np.uint32)
        bits += _ROUND
        bits <<= _THREE  # the half's 15 bits now begin at bit 16, the sign has gone
        bits |= block.view(np.uint32) & _SIGN
        bits >>= _SIXTEEN
        half[start : start + _BLOCK] = bits
    return half.view(np.float16).reshape(tensor.shape)


def _from_half(place: str, tensor: Array) -> Floats:
    """Exact float32 values of finite half-precision ones."""
    flat = np.ascontiguousarray(tensor).reshape(-1)
    # Infinities and NaN have the largest exponent: 0x7C00 and above, 0xFC00 and above if negative.
    if flat.view(np.int16).max() >= 0x7C00 or flat.view(np.uint16).max() >= 0xFC00:
        raise WireFormatError(
            f"{place}: expected finite half-precision values, got others; "
            "run the same Shardline version everywhere"
        )
    bits = flat.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SIGN_AND_HALF
    values = bits.view(np.float32)
    values *= _FROM_HALF
    return values.reshape(tensor.shape)


def _to_int8(name: str, tensor: Array, scaled: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """Whole numbers -127 to 127 and the scales, of shape ``tensor.shape[:scaled]``."""
    values = _as_float32(tensor)
    lead = values.shape[:scaled]
    rows = values.reshape(math.prod(lead), -1)  # (scales, values of each)
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if not largest.max() < np.inf:
        _check_finite(name, values, "int8")
    scales = np.minimum(largest / _STEPS, _LARGEST_SCALE)
    if scales.min() >= _SMALLEST_SCALE:
        inverse = (1 / scales)[:, None]
    else:  # the inverse would overflow
        scales[scales < _SMALLEST_SCALE] = 0
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)[:, None]
    numbers = np.empty(rows.shape, np.int8)
    for block in _blocks(*rows.shape):
        steps = rows[block] * inverse[block[0]]
        np.rint(steps, out=steps)
        numbers[block] = steps
    return numbers.reshape(values.shape), scales.reshape(lead)


def _from_int8(place: str, numbers: Array, scales: Array) -> Floats:
    if not (scales.min() >= 0 and scales.max() < np.inf):
        wrong = scales[~((scales >= 0) & (scales < np.inf))][0]
        raise WireFormatError(
            f"{place}: expected scales that are finite and not negative, got {wrong}; "
            "run the same Shardline version everywhere"
        )
    rows = numbers.reshape(scales.size, -1)
    with np.errstate(over="ignore"):  # -128 and scales that no stage sends: infinite, not an error
        values = np.multiply(rows, scales.reshape(-1, 1), dtype=np.float32)
    return values.reshape(numbers.shape)


def _blocks(num_rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Index pairs that cover a matrix in blocks of at most ``_BLOCK`` elements, or of one row."""
    if width >= _BLOCK:
        for row in range(num_rows):
            for start in range(0, width, _BLOCK):
                yield slice(row, row + 1), slice(start, start + _BLOCK)
    else:
        step = _BLOCK // width
        for row in range(0, num_rows, step):
            yield slice(row, row + step), slice(None)


def _as_float32(tensor: Array) -> Floats:
    """Contiguous float32 values; what is too large for it becomes infinite."""
    if tensor.dtype == np.float32 and tensor.flags.c_contiguous:
        return tensor
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(tensor, np.float32).reshape(tensor.shape)


def _check_finite(name: str, tensor: Array, codec: str) -> None:
    """Raises where :func:`compress` says; ``tensor`` as the codec reads it."""
    wrong = np.argwhere(~np.isfinite(tensor))
    if len(wrong):
        index = tuple(map(int, wrong[0]))
        raise WireFormatError(
            f"tensor `{name}`: {tensor[index]} at {index}, the codec {codec} carries finite "
            f"float32 values only ({len(wrong):,} of {tensor.size:,} are not); "
            "plan this edge with the codec float32"
        )
