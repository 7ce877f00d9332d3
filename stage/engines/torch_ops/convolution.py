"""Convolution and transposed convolution in one to three dimensions."""

from torch import Tensor
from torch.nn import functional

from stage.engines.torch_ops.registry import operator
from stage.engines.torch_ops.windows import AUTO_PADS, Ints, pad_spatial, resolve_pads

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@operator("Conv", auto_pad=AUTO_PADS)
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = (),
    group: int = 1,
    kernel_shape: Ints = (),  # noqa: ARG001 (the weight has the same shape)
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    """Padding that differs between the two ends of an axis is materialised."""
    kernel = weight.shape[2:]
    strides, dilations = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    before, after = resolve_pads(auto_pad, pads, x.shape[2:], kernel, strides, dilations)
    if before != after:
        x, before = pad_spatial(x, before, after), [0] * len(kernel)
    return CONVOLUTIONS[len(kernel)](x, weight, bias, strides, before, dilations, group)


@operator("ConvTranspose", auto_pad=AUTO_PADS)
def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = (),
    group: int = 1,
    kernel_shape: Ints = (),  # noqa: ARG001 (the weight has the same shape)
    output_padding: Ints = (),
    output_shape: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    """``pads`` crop the full output; ``output_shape``, or SAME, says how much to crop instead."""
    kernel, rank = weight.shape[2:], weight.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    if auto_pad.startswith("SAME") and not output_shape:
        output_shape = [n * stride for n, stride in zip(x.shape[2:], strides, strict=True)]
    if output_shape:
        full = [
            (n - 1) * stride + (window - 1) * dilation + 1 + more
            for n, stride, window, dilation, more in zip(
                x.shape[2:], strides, kernel, dilations, extra, strict=True
            )
        ]
        totals = [f - n for f, n in zip(full, output_shape[-rank:], strict=True)]
        smaller = [total // 2 for total in totals]
        larger = [total - half for total, half in zip(totals, smaller, strict=True)]
        upper = auto_pad == "SAME_UPPER"
        before, after = (smaller, larger) if upper else (larger, smaller)
    else:
        before, after = resolve_pads(auto_pad, pads, kernel, kernel, strides, dilations)
    if min(*before, *after) < 0:
        raise ValueError(f"output_shape {list(output_shape)} is larger than the full output")
    native = before if before == after else [0] * rank
    y = TRANSPOSED[rank](x, weight, bias, strides, native, extra, group, dilations)
    if native is before:
        return y
    return pad_spatial(y, [-n for n in before], [-n for n in after])
