"""Activation functions."""

import torch
from torch import Tensor
from torch.nn import functional

from stage.engines.torch_ops.registry import operator


@operator("Relu")
def relu(x: Tensor, /) -> Tensor:
    """max(0, x)."""
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, /, *, alpha: float = 0.01) -> Tensor:
    """``alpha * x`` below zero."""
    return functional.leaky_relu(x, alpha)


@operator("PRelu")
def parametric_relu(x: Tensor, slope: Tensor, /) -> Tensor:
    """The slope broadcasts as in arithmetic, not along channels as torch's does."""
    return torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """``x`` above ``alpha``, else zero."""
    return functional.threshold(x, alpha, 0.0)


@operator("Elu")
def elu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """``alpha * (exp(x) - 1)`` below zero."""
    return functional.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """``alpha * (exp(x / alpha) - 1)`` below zero."""
    return functional.celu(x, alpha)


@operator("Selu")
def selu(
    x: Tensor,
    /,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Tensor:
    """Scaled Elu; torch's own has both constants fixed."""
    return gamma * functional.elu(x, alpha)


@operator("Clip")
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, /) -> Tensor:
    """Limits are scalars; clamping with tensors as limits would take torch's slow path."""
    if low is None and high is None:
        return x
    return torch.clamp(
        x, None if low is None else low.item(), None if high is None else high.item()
    )


@operator("Sigmoid")
def sigmoid(x: Tensor, /) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, /, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``alpha * x + beta`` between 0 and 1; torch's own has alpha fixed at 1/6."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@operator("HardSwish")
def hard_swish(x: Tensor, /) -> Tensor:
    """``x`` times its HardSigmoid with alpha 1/6."""
    return functional.hardswish(x)


@operator("Swish")
def swish(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """``x * sigmoid(alpha * x)``."""
    return x * torch.sigmoid(alpha * x)


@operator("Mish")
def mish(x: Tensor, /) -> Tensor:
    """``x * tanh(softplus(x))``."""
    return functional.mish(x)


@operator("Tanh")
def tanh(x: Tensor, /) -> Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


@operator("Gelu", approximate=("none", "tanh"))
def gelu(x: Tensor, /, *, approximate: str = "none") -> Tensor:
    """Exact by erf, or approximated by tanh."""
    return functional.gelu(x, approximate=approximate)


@operator("Softplus")
def softplus(x: Tensor, /) -> Tensor:
    """log(exp(x) + 1)."""
    return functional.softplus(x)


@operator("Softsign")
def softsign(x: Tensor, /) -> Tensor:
    """x / (1 + |x|)."""
    return functional.softsign(x)


@operator("Softmax")
def softmax(x: Tensor, /, *, axis: int = -1) -> Tensor:
    """Along one axis."""
    return torch.softmax(x, axis)


@operator("LogSoftmax")
def log_softmax(x: Tensor, /, *, axis: int = -1) -> Tensor:
    """Logarithm of the softmax along one axis."""
    return torch.log_softmax(x, axis)
