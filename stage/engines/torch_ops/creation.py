"""Operators that make tensors, or make them of another type. `Constant` is read when loading."""

import torch
from torch import Tensor

from stage.engines.torch_ops.registry import operator
from stage.engines.torch_ops.tensors import dtype_of


@operator("Cast")
def cast(x: Tensor, /, *, to: int, saturate: int = 1) -> Tensor:  # noqa: ARG001 (float8 only)
    """Floats become integers towards zero."""
    return x.to(dtype_of(to))


@operator("CastLike")
def cast_like(
    x: Tensor,
    like: Tensor,
    /,
    *,
    saturate: int = 1,  # noqa: ARG001 (float8 only)
) -> Tensor:
    """Cast to the type of another tensor."""
    return x.to(like.dtype)


@operator("ConstantOfShape")
def constant_of_shape(sizes: Tensor, /, *, value: Tensor | None = None) -> Tensor:
    """One value everywhere, by default a float zero."""
    if value is None:
        return torch.zeros(sizes.tolist())
    return torch.full(sizes.tolist(), value.item(), dtype=value.dtype)


@operator("Range")
def number_range(start: Tensor, limit: Tensor, delta: Tensor, /) -> Tensor:
    """From ``start`` up to but without ``limit``; empty when the step leads away from it."""
    first, last, step = start.item(), limit.item(), delta.item()
    if (last - first) * step <= 0:
        return torch.empty(0, dtype=start.dtype)
    return torch.arange(first, last, step, dtype=start.dtype)
