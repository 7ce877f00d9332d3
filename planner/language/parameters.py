"""A decoder's parameters on their way from the checkpoint into the graph: as they are, transposed,
or quantised. Each is read when it is written, and never two at once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import NodeProto

from planner.language.blocks import Part, part_specs, quantise_part
from planner.language.checkpoint import Checkpoint
from planner.onnx_graph import Array, node_inputs, rename_tensors
from shards.weights_writer import ArraySpec


@dataclass(frozen=True)
class Parameter:
    """One tensor of the graph: which of the checkpoint's it is, and what is made of it.

    ``shape`` is the checkpoint's. ``part`` of ``bits`` bits: what quantisation makes of a matrix
    (inputs, outputs), after it was transposed if ``transposed``.
    """

    key: str
    shape: tuple[int, ...]
    transposed: bool = False
    part: Part | None = None
    bits: Literal[4, 8] = 8

    @property
    def spec(self) -> ArraySpec:
        """Type and dimensions in the graph."""
        shape = self.shape[::-1] if self.transposed else self.shape
        if self.part is None:
            return ArraySpec("float32", shape)
        return part_specs(shape[0], shape[1], self.bits)[self.part]

    def read(self, checkpoint: Checkpoint) -> Array:
        """Its elements.

        Raises:
            WeightsError: the checkpoint's file is broken.
        """
        array: Array = checkpoint.read(self.key)
        if self.transposed:
            array = np.ascontiguousarray(array.T)
        return array if self.part is None else quantise_part(array, self.bits, self.part)


def fold_transposes(nodes: list[NodeProto], parameters: dict[str, Parameter]) -> None:
    """Store parameters as they are multiplied: drop each ``Transpose`` of one, in place."""
    uses = Counter(name for node in nodes for name in node_inputs(node))
    renamed: dict[str, str] = {}
    kept = []
    for node in nodes:
        source = node.input[0] if node.input else ""
        parameter = parameters.get(source)
        # Of a matrix: of more dimensions there is more than one way, and no model has needed it.
        if node.op_type == "Transpose" and parameter is not None and len(parameter.shape) == 2:
            transposed = f"{source}/transposed" if uses[source] > 1 else source
            parameters[transposed] = replace(parameter, transposed=not parameter.transposed)
            renamed[node.output[0]] = transposed
        else:
            kept.append(node)
    nodes[:] = kept
    rename_tensors(nodes, renamed)


def used_parameters(
    nodes: Sequence[NodeProto], parameters: dict[str, Parameter]
) -> dict[str, Parameter]:
    """Those that some node reads, by name."""
    used = {name for node in nodes for name in node_inputs(node)}
    return {name: parameters[name] for name in sorted(used & parameters.keys())}
