"""The preprocessing that becomes part of stage 0: uint8 pixels in, normalised floats out."""

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from contract.plan import ImageInput

IMAGE = "image"
"""Name of the input tensor of an image model, uint8 (batch, channels, height, width)."""
NORMALISED = "shardline/image_normalised"
"""Name of the tensor that takes the place of the model's own input, float32, same shape."""
_FLOAT, _SCALED = "shardline/image_float", "shardline/image_scaled"
_SCALE, _SHIFT = "shardline/image_scale", "shardline/image_shift"


def normalisation(image: ImageInput, output: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes that compute ``(image / 255 - mean) / std`` into ``output``, float32, and their
    constants: one multiplication and one addition per pixel.
    """
    mean, std = np.array(image.mean), np.array(image.std)
    scale = (1 / (255 * std)).astype(np.float32).reshape(1, -1, 1, 1)
    shift = (-mean / std).astype(np.float32).reshape(1, -1, 1, 1)
    nodes = [
        helper.make_node("Cast", [IMAGE], [_FLOAT], to=TensorProto.FLOAT),
        helper.make_node("Mul", [_FLOAT, _SCALE], [_SCALED]),
        helper.make_node("Add", [_SCALED, _SHIFT], [output]),
    ]
    return nodes, [numpy_helper.from_array(scale, _SCALE), numpy_helper.from_array(shift, _SHIFT)]
