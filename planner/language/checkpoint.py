"""The safetensors files of a transformers directory: which tensor lies where, and one at a time.

Nothing is mapped or kept: a tensor is read, converted to float32, and belongs to the caller.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import WeightsError
from shards.weights_file import WeightEntry, read_layout

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt")
FLOATS: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
"""Element types that a language model may be stored in, and their bytes."""
PIECE_ELEMENTS = 1 << 20
"""How much of two tensors is in memory while they are compared."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a directory by name, with the file that each lies in."""

    folder: Path
    entries: Mapping[str, tuple[Path, WeightEntry]]

    @property
    def provenance(self) -> str:
        """The files' names, as the plan records them."""
        files = sorted({path.name for path, _ in self.entries.values()})
        return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions of a tensor as it is stored."""
        return self.entries[name][1].shape

    def read(self, name: str) -> Floats:
        """One tensor as float32, in memory of its own.

        Raises:
            WeightsError: it is not made of floats, or the file ends before it does.
        """
        return self._floats(name, 0, self._size(name)).reshape(self.shape(name))

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors have the same shape and elements; no more than pieces are read.

        Raises:
            WeightsError: as :meth:`read`.
        """
        if self.shape(one) != self.shape(other):
            return False
        size = self._size(one)
        for start in range(0, size, PIECE_ELEMENTS):
            count = min(PIECE_ELEMENTS, size - start)
            pieces = self._floats(one, start, count), self._floats(other, start, count)
            if not np.array_equal(pieces[0], pieces[1], equal_nan=True):
                return False
        return True

    def _size(self, name: str) -> int:
        return int(np.prod(self.shape(name), dtype=np.int64))

    def _floats(self, name: str, start: int, count: int) -> Floats:
        """``count`` elements from the one numbered ``start``, flat."""
        path, entry = self.entries[name]
        width = FLOATS.get(entry.dtype)
        if width is None or self._size(name) * width != entry.length:
            raise WeightsError(
                f"{path}: tensor {name} is {entry.dtype} of {entry.length:,} bytes, expected "
                f"{' or '.join(FLOATS)}; save the model as bfloat16, float16 or float32 first"
            )
        raw: npt.NDArray[Any] = np.fromfile(
            path, np.dtype(f"<u{width}"), count=count, offset=entry.offset + start * width
        )
        if len(raw) != count:
            raise WeightsError(f"{path}: ends inside tensor {name}; download it again")
        if entry.dtype == "BF16":  # the upper half of a float32
            raw = raw.astype("<u4")
            raw <<= 16
            return raw.view("<f4")
        if entry.dtype == "F16":
            return raw.view("<f2").astype(np.float32)
        return raw.view("<f4")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of the directory's safetensors files.

    Raises:
        WeightsError: there are none, the index names one that is not there, or one is broken.
    """
    entries: dict[str, tuple[Path, WeightEntry]] = {}
    for path in _files(folder):
        for name, entry in read_layout(path).items():
            if name in entries:
                raise WeightsError(f"{path}: tensor {name} is in {entries[name][0].name}, too")
            entries[name] = (path, entry)
    return Checkpoint(folder, entries)


def _files(folder: Path) -> Iterator[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{index}: expected an object with `weight_map` ({error!r:.80}); download it again"
            ) from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise WeightsError(f"{index}: names the file {name!r:.80}, expected a plain name")
            if not (folder / name).is_file():
                raise WeightsError(f"{folder}: {INDEX} names {name}, which is not there")
            yield folder / name
        return
    if (folder / WEIGHTS).is_file():
        yield folder / WEIGHTS
        return
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise WeightsError(
            f"{folder}: the weights are in {pickled[0]}, a pickle, which can run any code when it "
            "is opened; convert it where you trust it: AutoModelForCausalLM.from_pretrained(DIR)"
            ".save_pretrained(OUT) writes safetensors"
        )
    raise WeightsError(f"{folder}: no weights; expected {WEIGHTS}, or {INDEX} and its files")
