"""Operators that move or name elements without computing: shape, order, joining, splitting."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stage.engines.torch_ops.registry import ANY_NUMBER, operator


@operator("Identity")
def identity(x: Tensor, /) -> Tensor:
    """The same tensor."""
    return x


@operator("Dropout", max_outputs=2)
def dropout(
    x: Tensor,
    ratio: Tensor | None = None,  # noqa: ARG001 (of training)
    training_mode: Tensor | None = None,
    /,
    *,
    seed: int = 0,  # noqa: ARG001
) -> tuple[Tensor, ...]:
    """Nothing at inference; the mask says that all is kept."""
    if training_mode is not None and training_mode.item():
        raise ValueError("training_mode is set")
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("Shape")
def shape(x: Tensor, /, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of the axes from ``start`` to ``end``."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size")
def size(x: Tensor, /) -> Tensor:
    """The number of elements."""
    return torch.tensor(x.numel())


@operator("Reshape")
def reshape(x: Tensor, target: Tensor, /, *, allowzero: int = 0) -> Tensor:
    """A size of 0 keeps the axis of the input, unless ``allowzero``; -1 is what remains."""
    sizes = target.tolist()
    if not allowzero:
        sizes = [x.shape[axis] if n == 0 else n for axis, n in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Tensor, /, *, axis: int = 1) -> Tensor:
    """Two axes: those before ``axis``, and the rest."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


@operator("Transpose")
def transpose(x: Tensor, /, *, perm: Sequence[int] | None = None) -> Tensor:
    """Axes in another order, by default reversed."""
    return x.permute(tuple(reversed(range(x.ndim)) if perm is None else perm))


@operator("Squeeze")
def squeeze(x: Tensor, axes: Tensor | None = None, /) -> Tensor:
    """Drop axes of size one: the given ones, by default all."""
    if axes is None:
        return x.squeeze()
    dims = axes.tolist()
    if any(x.shape[dim] != 1 for dim in dims):
        raise ValueError(f"axes {dims} are not all of size one")
    return x.squeeze(dims)


@operator("Unsqueeze")
def unsqueeze(x: Tensor, axes: Tensor, /) -> Tensor:
    """Insert axes of size one; positions count in the output."""
    rank = x.ndim + axes.numel()
    for dim in sorted(dim % rank for dim in axes.tolist()):
        x = x.unsqueeze(dim)
    return x


@operator("Expand")
def expand(x: Tensor, target: Tensor, /) -> Tensor:
    """Broadcast with a shape, in both directions: a 1 in it leaves the axis as it is."""
    sizes: list[int] = target.tolist()
    missing = max(0, x.ndim - len(sizes))
    old = [1] * (len(sizes) + missing - x.ndim) + list(x.shape)
    new = [1] * missing + sizes
    return x.expand([a if b == 1 else b for a, b in zip(old, new, strict=True)])


@operator("Tile")
def tile(x: Tensor, repeats: Tensor, /) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(repeats.tolist())


@operator("Concat")
def concat(*tensors: Tensor, axis: int) -> Tensor:
    """Join along one axis."""
    return torch.cat(tensors, axis)


@operator("Split", max_outputs=ANY_NUMBER)
def split(
    x: Tensor,
    sizes: Tensor | None = None,
    /,
    *,
    axis: int = 0,
    num_outputs: int | None = None,  # noqa: ARG001 (the node has as many)
    output_count: int,
) -> tuple[Tensor, ...]:
    """In parts of the given sizes, by default equal ones of which the last may be smaller."""
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    return torch.split(x, -(-x.shape[axis] // output_count), axis)


@operator("DepthToSpace", mode=("DCR", "CRD"))
def depth_to_space(x: Tensor, /, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels become pixels."""
    if mode == "CRD":
        return torch.nn.functional.pixel_shuffle(x, blocksize)
    n, channels, height, width = x.shape
    depth = channels // blocksize**2
    blocks = x.reshape(n, blocksize, blocksize, depth, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, depth, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, /, *, blocksize: int) -> Tensor:
    """Pixels become channels."""
    n, channels, height, width = x.shape
    high, wide = height // blocksize, width // blocksize
    blocks = x.reshape(n, channels, high, blocksize, wide, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, channels * blocksize**2, high, wide)
