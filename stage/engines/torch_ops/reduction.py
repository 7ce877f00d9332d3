"""Reductions. The axes are an input since opset 18 (`ReduceSum`: 13) and an attribute before."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stage.engines.torch_ops.registry import operator

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):  # torch multiplies along one axis at a time
        x = torch.prod(x, dim, keepdim=keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.sum(x, dims, keepdim=keep, dtype=x.dtype)  # torch would widen integers


def _register(name: str, function: Reduce) -> None:
    def reduction(
        x: Tensor,
        axes_input: Tensor | None = None,
        /,
        *,
        axes: Sequence[int] = (),
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        dims = [dim % x.ndim for dim in (axes if axes_input is None else axes_input.tolist())]
        if not dims:
            if noop_with_empty_axes or x.ndim == 0:
                return x
            dims = list(range(x.ndim))
        return function(x, dims, bool(keepdims))

    operator(name)(reduction)


for _name, _reduce in {
    "ReduceL1": lambda x, dims, keep: _sum(x.abs(), dims, keep),
    "ReduceL2": lambda x, dims, keep: _sum(x * x, dims, keep).sqrt(),
    "ReduceLogSum": lambda x, dims, keep: _sum(x, dims, keep).log(),
    "ReduceLogSumExp": lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep),
    "ReduceMax": lambda x, dims, keep: torch.amax(x, dims, keepdim=keep),
    "ReduceMean": lambda x, dims, keep: torch.mean(x, dims, keepdim=keep),
    "ReduceMin": lambda x, dims, keep: torch.amin(x, dims, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, dims, keep: _sum(x * x, dims, keep),
}.items():
    _register(_name, _reduce)
