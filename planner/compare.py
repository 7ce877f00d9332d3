"""Compares two answers to the same inputs, and says whether that proves anything. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TOLERANCE = 1e-4  # of the largest reference value; float32 sums in another order give about 1e-6
MIN_REFERENCE = 1e-3
MIN_SPREAD = 1e-2  # of the largest reference value
Outputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """Of outputs ``a`` with reference outputs ``b``, over all tensors of a batch.

    ``spread_between_images``: how far the same element of the reference lies apart in different
    images, at most. ``top1_agreement``: the share of images whose largest element is the same one.
    """

    images: int
    max_abs_difference: float
    max_abs_reference: float
    spread_between_images: float
    top1_agreement: float
    tolerance: float = TOLERANCE

    @property
    def equal(self) -> bool:
        """Whether ``max|a - b| <= tolerance * max|b|``; false where either holds a NaN."""
        return self.max_abs_difference <= self.tolerance * self.max_abs_reference

    @property
    def conclusive(self) -> bool:
        """Whether the reference says something, and something else about each image.

        Equal zeros, or one answer for all images, would compare nothing with nothing.
        """
        return (
            self.max_abs_reference >= MIN_REFERENCE
            and self.spread_between_images >= MIN_SPREAD * self.max_abs_reference
        )


def compare(a: Outputs, b: Outputs, tolerance: float = TOLERANCE) -> Comparison:
    """Compare outputs by name; the leading dimension of each is the image.

    Raises:
        ValueError: the names or shapes differ, or there is nothing to compare.
    """
    if set(a) != set(b) or not b:
        raise ValueError(f"outputs {sorted(a)} cannot be compared with {sorted(b)}")
    differences, references, spreads, agreements = [], [], [], []
    for name, expected in b.items():
        actual = a[name]
        if actual.shape != expected.shape or not expected.size:
            raise ValueError(f"output {name}: {actual.shape} compared with {expected.shape}")
        images = len(expected)
        reference = expected.reshape(images, -1).astype(np.float64)  # (N, elements)
        answer = actual.reshape(images, -1).astype(np.float64)
        differences.append(np.abs(answer - reference).max())
        references.append(np.abs(reference).max())
        spreads.append(np.ptp(reference, axis=0).max())
        agreements.append((answer.argmax(axis=1) == reference.argmax(axis=1)).mean())
    return Comparison(
        images=images,
        max_abs_difference=float(np.max(differences)),
        max_abs_reference=float(np.max(references)),
        spread_between_images=float(np.max(spreads)),
        top1_agreement=float(np.min(agreements)),
        tolerance=tolerance,
    )
