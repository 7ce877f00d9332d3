"""The table from ONNX operator name to torch function, and what each function accepts.

What a function cannot do is known when a shard is loaded, not when its first batch runs: names of
attributes come from its signature, restricted attribute values and the number of outputs from its
registration.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

Result = Tensor | tuple[Tensor, ...]
Function = TypeVar("Function", bound=Callable[..., Result])

ANY_NUMBER = -1
"""Of outputs: the function is told how many by its keyword parameter ``output_count``."""

OPERATORS: dict[str, "Operator"] = {}


@dataclass(frozen=True, slots=True)
class Operator:
    """One ONNX operator: its function, and the attribute values it is limited to."""

    function: Callable[..., Result]
    allowed: Mapping[str, tuple[object, ...]]
    max_outputs: int

    def refusal(
        self, input_count: int, output_count: int, attributes: Mapping[str, Any]
    ) -> str | None:
        """Why a node with these inputs, outputs and attributes cannot be run; None if it can."""
        if self.max_outputs != ANY_NUMBER and output_count > self.max_outputs:
            return f"{output_count} outputs, at most {self.max_outputs} supported"
        try:
            inspect.signature(self.function).bind(*[None] * input_count, **attributes)
        except TypeError as error:
            return str(error)
        for name, values in self.allowed.items():
            if attributes.get(name, values[0]) not in values:
                return f"{name}={attributes[name]!r}, supported: {', '.join(map(repr, values))}"
        return None


def operator(
    name: str, max_outputs: int = 1, **allowed: tuple[object, ...]
) -> Callable[[Function], Function]:
    """Register a function as the ONNX operator ``name``.

    Args:
        name: the operator, as in a node's ``op_type``.
        max_outputs: how many of the operator's outputs the function can give.
        allowed: for an attribute, the only values that the function understands.
    """

    def register(function: Function) -> Function:
        OPERATORS[name] = Operator(function, allowed, max_outputs)
        return function

    return register
