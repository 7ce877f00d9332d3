"""What a tensor between two stages looks like, and the check at every boundary."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from contract.errors import TensorMismatchError
from contract.frozen import FrozenModel

BATCH: Final = "batch"
"""The symbolic leading dimension: how many images (or sequences) a message carries."""
TOKENS: Final = "tokens"
"""The other symbolic dimension: how many positions of its sequences a message carries."""

DType = Literal["uint8", "int8", "int32", "int64", "float16", "float32", "float64", "bool"]
Size = Annotated[int, Field(gt=0, lt=2**63)]
Tensors = Mapping[str, npt.NDArray[np.generic]]
MAX_RANK = 8
MAX_TENSORS = 64
MAX_TENSOR_NAME = 1000


class TensorSpec(FrozenModel):
    """Name, dtype and shape of one tensor.

    A dimension is a size, or the word ``batch``; a language model's also ``tokens``.
    """

    name: str = Field(max_length=MAX_TENSOR_NAME)
    dtype: DType
    shape: tuple[Size | Literal["batch", "tokens"], ...] = Field(max_length=MAX_RANK)

    def bytes_of(self, images: int, tokens: int = 1) -> int:
        """Bytes of the whole tensor with so many images, and so many tokens of each sequence."""
        counts = [images] * self.shape.count(BATCH) + [tokens] * self.shape.count(TOKENS)
        return self.bytes_per_image * math.prod(counts)

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's share of the tensor, or of one token's of one sequence."""
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
            if actual != expected and (isinstance(expected, int) or actual < 1):
                return False
        return True


def check_tensors(where: str, specs: Sequence[TensorSpec], tensors: Tensors) -> int:
    """Check that ``tensors`` are exactly those of ``specs``; return the batch size.

    Raises:
        TensorMismatchError: a tensor is missing, unexpected, of another dtype or shape, or the
            tensors disagree about the batch size or the number of tokens.
    """
    expected_names = {spec.name for spec in specs}
    if expected_names != tensors.keys():
        raise TensorMismatchError(
            f"{where}: expected tensors {sorted(expected_names)}, got {sorted(tensors)}; "
            "sender and receiver must run the same plan"
        )
    sizes: dict[str, set[int]] = {BATCH: set(), TOKENS: set()}
    for spec in specs:
        array = tensors[spec.name]
        if not spec.fits(array):
            raise TensorMismatchError(
                f"{where}, tensor `{spec.name}`: expected {spec.describe()}, "
                f"got {array.dtype.name} {array.shape}; sender and receiver must run the same plan"
            )
        for dimension, actual in zip(spec.shape, array.shape, strict=True):
            if not isinstance(dimension, int):
                sizes[dimension].add(actual)
    for kind, found in sizes.items():
        if len(found) > 1:
            what = "batch size" if kind == BATCH else "number of tokens"
            raise TensorMismatchError(
                f"{where}: the tensors disagree about the {what}: {sorted(found)}"
            )
    return sizes[BATCH].pop() if sizes[BATCH] else 1
