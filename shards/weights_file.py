"""Reads the header of a safetensors file: where each tensor lies. Loads no tensor.

Format: https://github.com/huggingface/safetensors#format
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from contract.errors import WeightsError

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation


class WeightEntry(NamedTuple):
    """One tensor of a safetensors file; ``offset`` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def read_layout(path: Path) -> dict[str, WeightEntry]:
    """Every tensor of the file by name.

    Raises:
        WeightsError: the file is not safetensors, or is truncated.
    """
    document, start, size = _read_header(path)
    entries = {}
    try:
        for name, entry in document.items():
            if name == "__metadata__":
                continue
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not isinstance(dtype, str) or any(type(n) is not int for n in (*shape, begin, end)):
                raise TypeError(f"tensor {name!r:.80} is described by {entry!r:.80}")
            if not 0 <= begin <= end <= size - start or any(dimension < 0 for dimension in shape):
                raise ValueError(f"tensor {name!r:.80} lies outside the file")
            entries[name] = WeightEntry(dtype, tuple(shape), start + begin, end - begin)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _broken(path, error) from error
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form ``__metadata__`` of the file, empty when it has none.

    Raises:
        WeightsError: the file is not safetensors.
    """
    metadata = _read_header(path)[0].get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _broken(path, TypeError("__metadata__ is not an object"))
    return {str(key): str(value) for key, value in metadata.items()}


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"header of {header_bytes:,} bytes in a file of {size:,}")
            text = file.read(header_bytes).decode()
            document = json.loads(text, object_pairs_hook=_no_duplicates)
        if not isinstance(document, dict):
            raise TypeError("the header is not an object")
    except OSError as error:
        raise WeightsError(f"{path}: cannot read ({error.strerror})") from error
    except (RecursionError, TypeError, ValueError) as error:
        raise _broken(path, error) from error
    return document, 8 + header_bytes, size


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two they take, so nobody may take either."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name is given twice")
    return document


def _broken(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path}: not a safetensors file, or truncated ({error}); expected one written by "
        "`safetensors.torch.save_file`"
    )
