"""Decides how pictures become the model's input tensor, from what is known of the model. Pure."""

from typing import Literal, NamedTuple, cast

from pydantic import ValidationError

from contract.errors import ModelError
from contract.plan import ImageInput
from planner.importers.imported_model import ImportOptions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.5,), (0.5,)
SMALL_INPUT = 64
"""Up to this many pixels a picture is resized to the input exactly: there is nothing to crop."""

Interpolation = Literal["nearest", "bilinear", "bicubic"]


class ImageDefaults(NamedTuple):
    """What a model was trained with; sizes in pixels."""

    height: int = 224
    width: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def decide_image_input(defaults: ImageDefaults, options: ImportOptions, where: str) -> ImageInput:
    """The model's input, options before defaults.

    Another size than the default keeps the share of the picture that the crop takes.

    Raises:
        ModelError: sizes or normalisation that make no sense.
    """
    height, width = options.input_size or (defaults.height, defaults.width)
    shorter, default_shorter = min(height, width), min(defaults.height, defaults.width)
    if shorter == default_shorter:
        resize = defaults.resize
    elif shorter <= SMALL_INPUT:
        resize = shorter
    else:
        resize = round(defaults.resize * shorter / default_shorter)
    interpolation = defaults.interpolation
    if interpolation not in ("nearest", "bilinear", "bicubic"):
        interpolation = "bilinear"
    colour = options.channels == 3
    mean = options.mean or defaults.mean or (IMAGENET_MEAN if colour else GREY_MEAN)
    std = options.std or defaults.std or (IMAGENET_STD if colour else GREY_STD)
    for what, values in (("mean", mean), ("std", std)):
        if len(values) != options.channels:
            raise ModelError(
                f"{where}: {what} has {len(values)} values, expected {options.channels}, one for "
                "each channel of the input"
            )
    if any(value <= 0 for value in std):
        raise ModelError(f"{where}: std {std}, expected values above 0")
    try:
        return ImageInput(
            channels=options.channels,
            height=height,
            width=width,
            resize=max(resize, shorter),
            interpolation=cast(Interpolation, interpolation),
            mean=tuple(float(value) for value in mean),
            std=tuple(float(value) for value in std),
        )
    except ValidationError as error:
        raise ModelError(
            f"{where}: input {height}x{width} cannot be used: {error.errors()[0]['msg']}"
        ) from error
