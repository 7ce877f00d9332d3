"""What a tensor between two stages looks like, and the check at every boundary."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from contract.errors import TensorMismatchError
from contract.frozen import FrozenModel

BATCH = "batch"
"""The symbolic leading dimension: how many images a message carries."""

DType = Literal["uint8", "int8", "int32", "int64", "float16", "float32", "float64", "bool"]
Size = Annotated[int, Field(gt=0, lt=2**63)]
Tensors = Mapping[str, npt.NDArray[np.generic]]
MAX_RANK = 8
MAX_TENSORS = 64
MAX_TENSOR_NAME = 1000


class TensorSpec(FrozenModel):
    """Name, dtype and shape of one tensor. A dimension is a size, or the word ``batch``."""

    name: str = Field(max_length=MAX_TENSOR_NAME)
    dtype: DType
    shape: tuple[Size | Literal["batch"], ...] = Field(max_length=MAX_RANK)

    def bytes_of(self, images: int) -> int:
        """Bytes of the whole tensor with so many images."""
        return self.bytes_per_image * math.prod([images] * self.shape.count(BATCH))

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's share of the tensor (all dimensions but ``batch``)."""
        return (
            math.prod(d for d in self.shape if isinstance(d, int)) * np.dtype(self.dtype).itemsize
        )

    def describe(self) -> str:
        """``float32 (batch, 64, 56, 56)``"""
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"

    def fits(self, array: npt.NDArray[np.generic]) -> bool:
        """Whether dtype, rank and every fixed dimension agree and the batch is not empty."""
        if array.dtype != self.dtype or array.ndim != len(self.shape):
            return False
        for expected, actual in zip(self.shape, array.shape, strict=True):
            if actual != expected and (expected != BATCH or actual < 1):
                return False
        return True


def check_tensors(where: str, specs: Sequence[TensorSpec], tensors: Tensors) -> int:
    """Check that ``tensors`` are exactly those of ``specs``; return the batch size.

    Raises:
        TensorMismatchError: a tensor is missing, unexpected, of another dtype or shape, or the
            tensors disagree about the batch size.
    """
    expected_names = {spec.name for spec in specs}
    if expected_names != tensors.keys():
        raise TensorMismatchError(
            f"{where}: expected tensors {sorted(expected_names)}, got {sorted(tensors)}; "
            "sender and receiver must run the same plan"
        )
    batch_sizes: set[int] = set()
    for spec in specs:
        array = tensors[spec.name]
        if not spec.fits(array):
            raise TensorMismatchError(
                f"{where}, tensor `{spec.name}`: expected {spec.describe()}, "
                f"got {array.dtype.name} {array.shape}; sender and receiver must run the same plan"
            )
        for dimension, actual in zip(spec.shape, array.shape, strict=True):
            if dimension == BATCH:
                batch_sizes.add(actual)
    if len(batch_sizes) > 1:
        raise TensorMismatchError(
            f"{where}: the tensors disagree about the batch size: {sorted(batch_sizes)}"
        )
    return batch_sizes.pop() if batch_sizes else 1
