"""Max and average pooling in one to three dimensions, and over everything."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from stage.engines.torch_ops.convolution import CONVOLUTIONS
from stage.engines.torch_ops.registry import operator
from stage.engines.torch_ops.windows import (
    AUTO_PADS,
    Ints,
    pad_spatial,
    pooled_size,
    resolve_pads,
)

MAX_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}


def _torch_pads(before: Ints, after: Ints, kernel: Ints) -> bool:
    """Whether torch's pooling takes this padding: equal at both ends, at most half a window."""
    return list(before) == list(after) and all(
        2 * pad <= window for pad, window in zip(before, kernel, strict=True)
    )


def _overhang(
    x: Tensor, before: Ints, after: Ints, kernel: Ints, strides: Ints, dilations: Ints, ceil: bool
) -> list[int]:
    """How far the last windows reach beyond the end padding; negative when they end before it."""
    overhang = []
    for axis, size in enumerate(x.shape[2:]):
        padded = before[axis] + size + after[axis]
        window = (kernel[axis] - 1) * dilations[axis] + 1
        count = pooled_size(padded, before[axis], size, window, strides[axis], ceil)
        overhang.append((count - 1) * strides[axis] + window - padded)
    return overhang


@operator("MaxPool", auto_pad=AUTO_PADS, storage_order=(0,))
def max_pool(
    x: Tensor,
    /,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = (),
    pads: Ints = (),
    storage_order: int = 0,  # noqa: ARG001 (of the second output, which is not supported)
    strides: Ints = (),
) -> Tensor:
    """What torch cannot pad itself is padded with minus infinity."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    before, after = resolve_pads(auto_pad, pads, x.shape[2:], kernel_shape, strides, dilations)
    if _torch_pads(before, after, kernel_shape):
        return MAX_POOLS[rank](x, kernel_shape, strides, before, dilations, bool(ceil_mode))
    over = _overhang(x, before, after, kernel_shape, strides, dilations, bool(ceil_mode))
    x = pad_spatial(x, before, [a + o for a, o in zip(after, over, strict=True)], -torch.inf)
    return MAX_POOLS[rank](x, kernel_shape, strides, 0, dilations)


@operator("AveragePool", auto_pad=AUTO_PADS)
def average_pool(
    x: Tensor,
    /,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    """What torch's pooling lacks is a convolution with ones, divided by how many were counted."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    before, after = resolve_pads(auto_pad, pads, x.shape[2:], kernel_shape, strides, dilations)
    if _torch_pads(before, after, kernel_shape) and set(dilations) == {1}:
        return AVERAGE_POOLS[rank](
            x, kernel_shape, strides, before, bool(ceil_mode), bool(count_include_pad)
        )
    over = _overhang(x, before, after, kernel_shape, strides, dilations, bool(ceil_mode))
    counted = pad_spatial(
        torch.ones_like(x[:1, :1]), before, after, 1.0 if count_include_pad else 0.0
    )
    planes = pad_spatial(x, before, after).flatten(0, 1).unsqueeze(1)
    window = torch.ones((1, 1, *kernel_shape), dtype=x.dtype)
    total, count = (
        CONVOLUTIONS[rank](
            pad_spatial(values, [0] * rank, over), window, None, strides, 0, dilations
        )
        for values in (planes, counted)
    )
    return (total / count).reshape(*x.shape[:2], *total.shape[2:])


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor, /) -> Tensor:
    """Over all spatial axes, kept with size one."""
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor, /) -> Tensor:
    """Over all spatial axes, kept with size one."""
    return x.amax(dim=list(range(2, x.ndim)), keepdim=True)
