"""transformers' own model with the weights that a quantised plan stores: what its stages are to
compute, but for activations, which onnxruntime rounds to int8.

Rounded weights alone change the logits so much (in int4 by half of their size in a small random
model) that a wrong model can hide behind it. So weights and arithmetic are judged apart: every
stored weight against the checkpoint's, and every logit against transformers with these weights.
"""

from collections.abc import Callable

import numpy as np

from contract.errors import VerificationError
from planner.graph import SegmentedGraph
from planner.importers.transformers_directory import ImportedDecoder
from planner.language.blocks import BLOCK_SIZE, QUANTISED, SCALES
from planner.language.quantise import BITS
from planner.language.reference import StreamedReference
from planner.onnx_graph import Array

SLACK = 1.001
"""For the rounding of float32."""
PIECE_ELEMENTS = 1 << 17
"""About so many weights are unpacked at once."""
_TINY = float(np.finfo(np.float32).tiny)


def rounded_reference(imported: ImportedDecoder, graph: SegmentedGraph) -> StreamedReference:
    """transformers' model whose matrices are those that ``graph`` stores in blocks.

    Raises:
        ModelError: transformers cannot build it.
        VerificationError: while it runs, see :func:`round_weights`.
    """
    weights, decoding = graph.model.weights, graph.model.decoding
    assert decoding is not None
    bits = BITS[decoding.quantisation]

    def change(name: str) -> Callable[[Array, bool], None] | None:
        for stored in (name, f"{name}/transposed"):
            packed, scales = f"{stored}/{QUANTISED}", f"{stored}/{SCALES}"
            if packed in weights:
                return lambda matrix, outputs_first: round_weights(
                    f"{imported.name}: {name} in {decoding.quantisation}",
                    matrix if outputs_first else matrix.T,
                    weights[packed],
                    weights[scales],
                    bits,
                )
        return None

    changes = {name: change(name) for name in imported.keys}
    return StreamedReference(imported, {n: each for n, each in changes.items() if each})


def round_weights(where: str, matrix: Array, packed: Array, scales: Array, bits: int) -> None:
    """Put what is stored in the place of ``matrix`` (outputs, inputs), float32.

    Raises:
        VerificationError: a weight moves by more than a step of its block, or a step is larger than
            the block's largest weight asks for.
    """
    outputs, inputs = matrix.shape
    rows = max(1, PIECE_ELEMENTS // inputs)
    steps = np.abs(scales).reshape(outputs, -1, 1)
    for first in range(0, outputs, rows):
        part = slice(first, first + rows)
        values = unpack(packed[part], scales.reshape(outputs, -1, 1)[part], bits)
        values.reshape(len(values), -1)[:, inputs:] = 0  # a last block that is not full
        given = np.zeros(values.shape, np.float32)
        given.reshape(len(values), -1)[:, :inputs] = matrix[part]
        moved = np.abs(values - given)
        largest = np.abs(given).max(-1, keepdims=True)
        close = (moved <= steps[part] * SLACK + _TINY).all()
        fine = (steps[part] <= largest / 2 ** (bits - 1) * SLACK + _TINY).all()
        if not (close and fine):
            raise VerificationError(
                f"{where}: a stored weight differs from the checkpoint's by {moved.max():.3g}, "
                f"expected at most one step of its block of {BLOCK_SIZE}, the largest of which is "
                f"{(largest / 2 ** (bits - 1)).max():.3g}; nothing was written. Please report the "
                "model"
            )
        matrix[part] = values.reshape(len(values), -1)[:, :inputs]


def unpack(packed: Array, scales: Array, bits: int) -> Array:
    """Blocks (outputs, blocks, bytes) and scales (outputs, blocks, 1) as float32 weights."""
    if bits == 4:  # two in a byte, the lower half first
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    values: Array = (packed.astype(np.float32) - 2 ** (bits - 1)) * scales
    return values
