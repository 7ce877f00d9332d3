"""Words of a plan: which model was cut, and what its clients feed it with."""

from typing import Literal

from pydantic import Field

from contract.decoder import TokenInput
from contract.frozen import FrozenModel

MAX_IMAGE_SIDE = 8192


class ImageInput(FrozenModel):
    """How a client turns a picture into the uint8 tensor that stage 0 takes.

    The picture is resized so that its shorter side is ``resize`` pixels, then the central
    ``height`` x ``width`` pixels are taken. ``mean`` and ``std`` (of values scaled to 0..1) are
    part of stage 0's graph and stand here for the record.
    """

    kind: Literal["image"] = "image"
    channels: Literal[1, 3]
    height: int = Field(gt=0, le=MAX_IMAGE_SIDE)
    width: int = Field(gt=0, le=MAX_IMAGE_SIDE)
    resize: int = Field(gt=0, le=MAX_IMAGE_SIDE)
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class TensorInput(FrozenModel):
    """The model takes its tensor as it is; only `.npy` files and `dummy:N` can feed it."""

    kind: Literal["tensor"] = "tensor"


class ModelInfo(FrozenModel):
    """Which model was cut. ``digest`` is the sha256 of the canonical graph with its weights."""

    name: str
    weights: str
    digest: str
    input: ImageInput | TensorInput | TokenInput = Field(discriminator="kind")
    labels: tuple[str, ...] = ()
    labels_mean_something: bool = True
