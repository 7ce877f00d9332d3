"""Pad in all its modes, on any axes."""

import torch
from torch import Tensor
from torch.nn import functional

from stage.engines.torch_ops.registry import operator


def _source(mode: str, size: int, before: int, after: int) -> Tensor:
    """For each position of the padded axis, the position that it repeats."""
    positions = torch.arange(-before, size + after)
    if mode == "edge":
        return positions.clamp(0, size - 1)
    if mode == "wrap":
        return positions % size
    period = max(1, 2 * (size - 1))
    positions = positions % period
    return torch.where(positions >= size, period - positions, positions)


@operator("Pad", mode=("constant", "reflect", "edge", "wrap"))
def pad(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    /,
    *,
    mode: str = "constant",
) -> Tensor:
    """Negative pads crop. Torch's own reflect and edge do not know all axes."""
    amounts = pads.tolist()
    dims = list(range(x.ndim)) if axes is None else [dim % x.ndim for dim in axes.tolist()]
    before, after = amounts[: len(dims)], amounts[len(dims) :]
    if mode == "constant":
        by_dim = {dim: [b, a] for dim, b, a in zip(dims, before, after, strict=True)}
        # torch lists the last axis first
        torch_pads = [n for dim in reversed(range(x.ndim)) for n in by_dim.get(dim, [0, 0])]
        return functional.pad(x, torch_pads, value=0 if value is None else value.item())
    for dim, b, a in zip(dims, before, after, strict=True):
        if b or a:
            x = x.index_select(dim, _source(mode, x.shape[dim], b, a))
    return x
