"""Where the windows of a convolution or a pooling lie: `auto_pad`, `pads` and output sizes."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

Ints = Sequence[int]
AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def resolve_pads(
    auto_pad: str, pads: Ints, sizes: Ints, kernel: Ints, strides: Ints, dilations: Ints
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis of the given ``sizes``."""
    rank = len(sizes)
    if auto_pad in ("NOTSET", ""):
        return list(pads[:rank]) or [0] * rank, list(pads[rank:]) or [0] * rank
    if auto_pad == "VALID":
        return [0] * rank, [0] * rank
    totals = [
        max(0, (-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size)
        for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    smaller = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, smaller, strict=True)]
    return (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)


def pad_spatial(x: Tensor, before: Ints, after: Ints, value: float = 0.0) -> Tensor:
    """Pad the last axes with a constant; a negative amount crops."""
    if not any(before) and not any(after):
        return x
    # torch lists the last axis first
    amounts = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return functional.pad(x, amounts, value=value)


def pooled_size(padded: int, before: int, size: int, window: int, stride: int, ceil: bool) -> int:
    """How many windows a pooling makes along an axis of ``size``, ``padded`` with its pads.

    With ``ceil`` a last window may hang over the end, but must not start in the end padding.
    """
    if not ceil:
        return (padded - window) // stride + 1
    count = -(-(padded - window) // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count
