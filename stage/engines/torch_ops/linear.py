"""Matrix products."""

import torch
from torch import Tensor
from torch.nn import functional

from stage.engines.torch_ops.registry import operator


@operator("MatMul")
def matmul(a: Tensor, b: Tensor, /) -> Tensor:
    """As numpy's."""
    if a.ndim > 2 and b.ndim == 2:
        # One product with many rows: torch makes one product per image of a transposed input.
        rows = a.reshape(a.shape[:-1].numel(), a.shape[-1])
        return (rows @ b).reshape(*a.shape[:-1], b.shape[-1])
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    /,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 (ONNX names the attributes)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """``alpha * a @ b + beta * c``."""
    a = a.t() if transA else a
    if alpha == beta == 1.0 and (c is None or c.ndim == 1):
        return functional.linear(a, b if transB else b.t(), c)
    product = a @ (b.t() if transB else b) * alpha
    return product if c is None else product + beta * c


@operator("Einsum")
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Einstein summation."""
    return torch.einsum(equation, *operands)
