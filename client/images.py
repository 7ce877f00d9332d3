"""Turns a picture file into the uint8 tensor that stage 0 takes; normalisation is in its graph."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from contract.errors import SourceError
from contract.plan import ImageInput

Pixels = npt.NDArray[np.uint8]
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def image_suffixes() -> frozenset[str]:
    """File name endings of every picture format that Pillow can read, lower case with the dot."""
    Image.init()
    readable = {name for name, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(readable)


def read_image(path: Path, spec: ImageInput) -> Pixels:
    """One picture as (channels, height, width) uint8.

    Raises:
        SourceError: the file is not a picture, is truncated, or is absurdly large.
    """
    try:
        with Image.open(path) as image:
            return prepare_image(image, spec)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: cannot read this picture: {error}") from error


def prepare_image(image: Image.Image, spec: ImageInput) -> Pixels:
    """Resize the shorter side to ``spec.resize``, cut the centre, as torchvision's presets do.

    Returns (channels, height, width) uint8.
    """
    mode = "RGB" if spec.channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    width, height = image.size
    shorter = min(width, height)
    if shorter != spec.resize:
        # The longer side is truncated, as torchvision.transforms.functional.resize does.
        size = (
            (spec.resize, int(spec.resize * height / width))
            if width <= height
            else (int(spec.resize * width / height), spec.resize)
        )
        image = image.resize(size, _RESAMPLING[spec.interpolation])
    left = round((image.width - spec.width) / 2)
    top = round((image.height - spec.height) / 2)
    image = image.crop((left, top, left + spec.width, top + spec.height))
    pixels = np.asarray(image, dtype=np.uint8)
    if spec.channels == 1:
        return pixels[np.newaxis]  # (1, H, W)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (H, W, 3) -> (3, H, W)
