"""Writes a safetensors file tensor by tensor, so that no more than one is in memory.

The same tensors give the same bytes as `safetensors.numpy.save_file` does: wider types first, then
by name, offsets without gaps, the header padded to 8 bytes.
Format: https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
"""The format's names of numpy's types, in the order of the reference implementation's `Dtype`."""
_RANK = {name: rank for rank, name in enumerate(_CODES)}


class ArraySpec(NamedTuple):
    """What a tensor will be, before it is there."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def write_weights(
    path: Path, specs: Mapping[str, ArraySpec], read: Callable[[str], npt.NDArray[Any]]
) -> None:
    """Write all tensors of ``specs``, asking ``read`` for each when its turn comes.

    Raises:
        ValueError: ``read`` gives another type or shape than was announced.
    """
    order = sorted(specs, key=lambda name: (-_RANK[specs[name].dtype], name))
    header, offset = {}, 0
    for name in order:
        spec = specs[name]
        header[name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.size_bytes],
        }
        offset += spec.size_bytes
    document = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    document += b" " * (-len(document) % 8)
    with path.open("wb") as file:
        file.write(len(document).to_bytes(8, "little"))
        file.write(document)
        for name in order:
            array = read(name)
            if (array.dtype.name, array.shape) != specs[name]:
                raise ValueError(
                    f"{name}: {array.dtype.name} {array.shape}, announced {specs[name]}"
                )
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(little).data)
            del array, little
