"""Resize by nearest neighbour or linear interpolation, in ONNX's own coordinate systems.

One axis at a time, by index: torch's interpolate knows only some of the coordinate systems, and
counts other pixels as nearest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stage.engines.torch_ops.registry import operator

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)


def _coordinates(mode: str, size: int, new_size: int, scale: float) -> Tensor:
    """Where each new element lies among the old ones."""
    new = torch.arange(new_size, dtype=torch.float32)
    if mode == "asymmetric":
        return new / scale
    if mode == "align_corners":
        return new * ((size - 1) / (new_size - 1)) if new_size > 1 else torch.zeros(new_size)
    if mode == "pytorch_half_pixel" and new_size == 1:
        return torch.zeros(1)
    coordinates = (new + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        exact = size * scale
        coordinates = coordinates + size / 2 * (1 - new_size / exact)
    return coordinates


def _nearest(coordinates: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return coordinates.floor()
    if mode == "ceil":
        return coordinates.ceil()
    if mode == "round_prefer_ceil":
        return (coordinates + 0.5).floor()
    return (coordinates - 0.5).ceil()


@operator(
    "Resize",
    mode=("nearest", "linear"),
    coordinate_transformation_mode=COORDINATES,
    nearest_mode=("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    antialias=(0,),
    keep_aspect_ratio_policy=("stretch",),
)
def resize(
    x: Tensor,
    roi: Tensor | None = None,  # noqa: ARG001 (of tf_crop_and_resize)
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    /,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    axes: Sequence[int] = (),
    antialias: int = 0,  # noqa: ARG001 (restricted to the default)
    keep_aspect_ratio_policy: str = "stretch",  # noqa: ARG001 (restricted to the default)
    cubic_coeff_a: float = -0.75,  # noqa: ARG001 (of the mode cubic)
    exclude_outside: int = 0,  # noqa: ARG001 (of the mode cubic)
    extrapolation_value: float = 0.0,  # noqa: ARG001 (of tf_crop_and_resize)
) -> Tensor:
    """To ``sizes``, or by ``scales``, whichever is given."""
    dims = [axis % x.ndim for axis in axes] or list(range(x.ndim))
    if sizes is not None and sizes.numel():
        new_sizes = sizes.tolist()
        factors = [new / x.shape[dim] for new, dim in zip(new_sizes, dims, strict=True)]
    elif scales is not None:
        factors = scales.tolist()
        new_sizes = [int(x.shape[dim] * f) for f, dim in zip(factors, dims, strict=True)]
    else:
        raise ValueError("neither scales nor sizes are given")
    for dim, factor, new_size in zip(dims, factors, new_sizes, strict=True):
        size = x.shape[dim]
        if factor == 1.0 and new_size == size:
            continue
        where = _coordinates(coordinate_transformation_mode, size, new_size, factor)
        if mode == "nearest":
            x = x.index_select(dim, _nearest(where, nearest_mode).long().clamp(0, size - 1))
        else:
            x = _interpolate(x, dim, where.clamp(0, size - 1))
    return x


def _interpolate(x: Tensor, dim: int, where: Tensor) -> Tensor:
    low = where.floor().long()
    high = (low + 1).clamp(max=x.shape[dim] - 1)
    weight = (where - low).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - dim))
    return torch.lerp(x.index_select(dim, low), x.index_select(dim, high), weight)
