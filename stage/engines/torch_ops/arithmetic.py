"""Element-wise arithmetic, comparison and logic, with broadcasting."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from stage.engines.torch_ops.registry import operator

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Asin": torch.asin,
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # both round halves to even
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _register_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    def unary(x: Tensor, /) -> Tensor:
        return function(x)

    operator(name)(unary)


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    def binary(a: Tensor, b: Tensor, /) -> Tensor:
        return function(a, b)

    operator(name)(binary)


def _register_variadic(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    def variadic(first: Tensor, /, *others: Tensor) -> Tensor:
        return reduce(function, others, first)

    operator(name)(variadic)


for _name, _unary in UNARY.items():
    _register_unary(_name, _unary)
for _name, _binary in BINARY.items():
    _register_binary(_name, _binary)
for _name, _binary in VARIADIC.items():
    _register_variadic(_name, _binary)


@operator("Div")
def div(a: Tensor, b: Tensor, /) -> Tensor:
    """Integers divide towards zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@operator("Mod")
def mod(a: Tensor, b: Tensor, /, *, fmod: int = 0) -> Tensor:
    """The sign of the divisor, or of the dividend with ``fmod``."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Pow")
def power(base: Tensor, exponent: Tensor, /) -> Tensor:
    """The result has the type of the base, whatever that of the exponent."""
    return torch.pow(base, exponent).to(base.dtype)


@operator("Mean")
def mean(first: Tensor, /, *others: Tensor) -> Tensor:
    """Of several tensors, element by element."""
    return sum(others, first) / (1 + len(others))


@operator("Where")
def where(condition: Tensor, x: Tensor, y: Tensor, /) -> Tensor:
    """``x`` where the condition holds, else ``y``."""
    return torch.where(condition, x, y)


@operator("IsInf")
def is_inf(x: Tensor, /, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Infinite, of the asked signs."""
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))
