"""Weights of a file by name, each mapped only while somebody holds it."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from planner.onnx_graph import Array
from shards.weights_writer import ArraySpec
from shards.writer import ByteRange


class MappedWeights(Mapping[str, Array]):
    """Tensors of a safetensors file. What was read leaves memory with the array that read it."""

    def __init__(
        self, path: Path, specs: Mapping[str, ArraySpec], places: Mapping[str, ByteRange]
    ) -> None:
        self._path, self._specs, self._places = path, specs, places

    def __getitem__(self, name: str) -> Array:
        spec = self._specs[name]
        return np.memmap(
            self._path,
            dtype=np.dtype(spec.dtype),
            mode="r",
            offset=self._places[name].offset,
            shape=spec.shape,
        )

    def only(self, names: Iterable[str]) -> "MappedWeights":
        """Some of them, still not mapped."""
        return MappedWeights(self._path, {name: self._specs[name] for name in names}, self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
