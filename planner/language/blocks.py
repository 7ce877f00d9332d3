"""Weights as whole numbers in blocks, the form that onnxruntime's MatMulNBits computes with.

Each output's weights are cut into blocks of 32 inputs with one float32 scale each, symmetric about
zero. onnxruntime's own kernels do it, so what they pack is what its operator reads.
Format: onnxruntime's docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from typing import Any, Literal

import numpy as np
from onnxruntime.capi import _pybind_state

from planner.onnx_graph import Array
from shards.weights_writer import ArraySpec

BLOCK_SIZE = 32
Part = Literal["quantised", "scales"]
QUANTISED: Part = "quantised"
SCALES: Part = "scales"
_KERNELS: dict[int, Any] = {
    4: _pybind_state.quantize_matmul_4bits,
    8: _pybind_state.quantize_matmul_8bits,
}


def part_specs(inputs: int, outputs: int, bits: int) -> dict[Part, ArraySpec]:
    """Types and dimensions of what a matrix (inputs, outputs) becomes."""
    blocks = -(-inputs // BLOCK_SIZE)
    return {
        QUANTISED: ArraySpec("uint8", (outputs, blocks, BLOCK_SIZE * bits // 8)),
        SCALES: ArraySpec("float32", (outputs * blocks,)),
    }


def quantise_part(matrix: Array, bits: Literal[4, 8], part: Part) -> Array:
    """One part of a float32 matrix (inputs, outputs) in blocks."""
    inputs, outputs = matrix.shape
    specs = part_specs(inputs, outputs, bits)
    packed = np.zeros(specs[QUANTISED].shape, np.uint8)
    scales = np.zeros(specs[SCALES].shape, np.float32)
    zero_points = np.zeros(outputs * -(-specs[QUANTISED].shape[1] * bits // 8), np.uint8)
    _KERNELS[bits](
        packed, np.ascontiguousarray(matrix), scales, zero_points, BLOCK_SIZE, outputs, inputs, True
    )
    return packed if part == QUANTISED else scales
