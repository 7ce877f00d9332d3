"""Normalisation over batch, channels, groups or the last axes."""

import torch
from torch import Tensor
from torch.nn import functional

from stage.engines.torch_ops.registry import operator


@operator("BatchNormalization", training_mode=(0,))
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    /,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,  # noqa: ARG001 (of training)
    training_mode: int = 0,  # noqa: ARG001
) -> Tensor:
    """With the running mean and variance."""
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, /, *, epsilon: float = 1e-5
) -> Tensor:
    """Over the spatial axes of each image and channel."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("GroupNormalization", stash_type=(1,))
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    /,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 (the precision: float, as torch does)
) -> Tensor:
    """Scale and bias count groups in opset 18, channels since 21."""
    channels = x.shape[1]
    scale, bias = (v.repeat_interleave(channels // v.numel()) for v in (scale, bias))
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization", stash_type=(1,))
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 (the precision: float, as torch does)
) -> Tensor:
    """Over the axes from ``axis`` on; scale and bias may broadcast."""
    shape = x.shape[axis % x.ndim :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    y = functional.layer_norm(x, shape, eps=epsilon) * scale
    return y if bias is None else y + bias


@operator("RMSNormalization", stash_type=(1,))
def rms_normalization(
    x: Tensor,
    scale: Tensor,
    /,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001
) -> Tensor:
    """Divides by the root mean square over the axes from ``axis`` on."""
    return functional.rms_norm(x, x.shape[axis % x.ndim :], eps=epsilon) * scale


@operator("LpNormalization", p=(2, 1))
def lp_normalization(x: Tensor, /, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divides by the norm along one axis; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("LRN")
def local_response_normalization(
    x: Tensor, /, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Across channels. Torch's own puts the longer side of an even window first, ONNX last."""
    before = (size - 1) // 2
    squares = (x * x).movedim(1, -1)
    windows = functional.pad(squares, (before, size - 1 - before)).unfold(-1, size, 1)
    total = windows.sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * total) ** beta
