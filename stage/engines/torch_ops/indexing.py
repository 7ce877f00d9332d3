"""Operators that pick elements: by index, by slice, by rank."""

import torch
from torch import Tensor

from stage.engines.torch_ops.registry import operator


def _from_start(indices: Tensor, size: int) -> Tensor:
    """ONNX counts a negative index from the end, torch's gathering refuses it."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def gather(x: Tensor, indices: Tensor, /, *, axis: int = 0) -> Tensor:
    """Whole slices along one axis, arranged as the indices are."""
    axis %= x.ndim
    if indices.ndim == 0:
        return x.select(axis, int(indices))
    picked = x.index_select(axis, _from_start(indices.reshape(-1), x.shape[axis]))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, /, *, axis: int = 0) -> Tensor:
    """One element for each index."""
    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


@operator("Slice")
def slice_axes(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
    /,
) -> Tensor:
    """Python's slices; torch itself has none with a negative step."""
    first, last = starts.tolist(), ends.tolist()
    dims = range(len(first)) if axes is None else axes.tolist()
    strides = [1] * len(first) if steps is None else steps.tolist()
    for dim, start, end, step in zip(dims, first, last, strides, strict=True):
        picked = range(*slice(start, end, step).indices(x.shape[dim]))
        if step < 0:
            x = x.index_select(dim, torch.tensor(picked, dtype=torch.int64))
        else:
            x = torch.ops.aten.slice(x, dim, picked.start, max(picked.start, picked.stop), step)
    return x


@operator("ArgMax", select_last_index=(0,))
def arg_max(
    x: Tensor,
    /,
    *,
    axis: int = 0,
    keepdims: int = 1,
    select_last_index: int = 0,  # noqa: ARG001 (restricted to the default)
) -> Tensor:
    """Where the largest element is, the first of equals."""
    return torch.argmax(x, axis, bool(keepdims))


@operator("ArgMin", select_last_index=(0,))
def arg_min(
    x: Tensor,
    /,
    *,
    axis: int = 0,
    keepdims: int = 1,
    select_last_index: int = 0,  # noqa: ARG001 (restricted to the default)
) -> Tensor:
    """Where the smallest element is, the first of equals."""
    return torch.argmin(x, axis, bool(keepdims))


@operator("TopK", max_outputs=2)
def top_k(
    x: Tensor, k: Tensor, /, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, ...]:
    """The values, and where they were."""
    values, indices = torch.topk(x, int(k), axis, bool(largest), bool(sorted))
    return values, indices


@operator("CumSum")
def cumulative_sum(x: Tensor, axis: Tensor, /, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Along one axis, from the end with ``reverse``, without the element itself if exclusive."""
    dim = int(axis)
    ordered = x.flip(dim) if reverse else x
    total = torch.cumsum(ordered, dim, dtype=x.dtype)
    if exclusive:
        total = total - ordered
    return total.flip(dim) if reverse else total


@operator("Trilu")
def triangle(x: Tensor, k: Tensor | None = None, /, *, upper: int = 1) -> Tensor:
    """The upper or the lower triangle, the rest zero."""
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)
