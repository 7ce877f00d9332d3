"""Seeded inputs that tell images apart: what calibrates random weights and verifies a plan.

Pure noise images look all alike to a network (their local statistics are the same), so a
comparison on them compares nothing. These are smooth, and differ in contrast and brightness.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.tensor_spec import BATCH, TensorSpec


def sample_images(
    count: int, channels: int, height: int, width: int, seed: int
) -> npt.NDArray[np.uint8]:
    """``count`` smooth images of differing contrast, uint8 (count, channels, height, width)."""
    generator = np.random.default_rng(seed)
    images = np.empty((count, channels, height, width), np.uint8)
    for index in range(count):
        cells = int(generator.integers(3, 9))
        coarse = generator.standard_normal((channels, cells, cells))
        smooth = _stretch(cells, height) @ coarse @ _stretch(cells, width).T  # (C, H, W)
        grain = generator.standard_normal((channels, height, width))
        contrast = 20 + 80 * (index % 4 + 1) / 4
        brightness = generator.uniform(80, 176, (channels, 1, 1))
        values = brightness + contrast * (smooth + 0.1 * grain)
        images[index] = np.clip(values, 0, 255).astype(np.uint8)
    return images


def sample_tensor(spec: TensorSpec, batch_size: int, seed: int) -> npt.NDArray[Any]:
    """A random tensor that fits ``spec``: N(0, 1) floats, all uint8 values, or small integers."""
    generator = np.random.default_rng(seed)
    shape = concrete_shape(spec.shape, batch_size)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(dtype, copy=False)
    high = {"uint8": 256, "bool": 2}.get(spec.dtype, 8)
    return generator.integers(0, high, shape).astype(dtype)


def concrete_shape(shape: Sequence[int | str], batch_size: int) -> tuple[int, ...]:
    """``shape`` with the symbolic batch dimension replaced by ``batch_size``."""
    return tuple(batch_size if dim == BATCH else int(dim) for dim in shape)


def _stretch(cells: int, size: int) -> npt.NDArray[np.float64]:
    """Linear interpolation from ``cells`` points to ``size`` pixels, as a (size, cells) matrix."""
    position = np.linspace(0, cells - 1, size)
    left = np.minimum(position.astype(int), cells - 2)
    share = position - left
    matrix = np.zeros((size, cells))
    rows = np.arange(size)
    matrix[rows, left] = 1 - share
    matrix[rows, left + 1] = share
    return matrix
