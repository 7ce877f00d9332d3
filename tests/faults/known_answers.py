"""Numbered batches whose answers are known: computed with numpy, apart from every engine."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import numpy as np

from client.batch import Batch, BatchResult
from tests.faults.stage_patches import POISON
from tests.tiny import HEIGHT, WIDTH, tiny_weights

IMAGES = 2
_weights = lru_cache(tiny_weights)


def answer(images: np.ndarray, plan_seed: int) -> np.ndarray:
    """What the whole model says; images (N, 1, 2, 3) uint8 -> (N, 4) float32."""
    x = images.astype(np.float32).reshape(len(images), -1) / np.float32(255)
    for weight in _weights(plan_seed):
        x = np.maximum(x @ weight, 0)
    return x


def numbered_batches(seed: int, plan_seeds: tuple[int, ...] = (0,)) -> Iterator[Batch]:
    """Endless, each unlike all others; no image whose answer is all zeros, as half-wrong ones are.

    ``plan_seeds`` are the models that the batches may meet.
    """
    generator = np.random.default_rng(seed)
    number = 0
    while True:
        images = generator.integers(0, 256, (IMAGES, 1, HEIGHT, WIDTH), dtype=np.uint8)
        if all((answer(images, s).max(axis=1) > 0.01).all() for s in plan_seeds):
            yield Batch({"image": images}, tuple(f"{number}/{i}" for i in range(IMAGES)))
            number += 1


def poisonous_batch(number: int) -> Batch:
    """The one that a stage with the patch ``poison`` dies of."""
    images = np.full((IMAGES, 1, HEIGHT, WIDTH), POISON, np.uint8)
    return Batch({"image": images}, tuple(f"poison-{number}/{i}" for i in range(IMAGES)))


def is_right(result: BatchResult, plan_seeds: tuple[int, ...] = (0,)) -> bool:
    """Whether it is the answer of one whole model, and of none of them in part."""
    images = np.asarray(result.batch.tensors["image"])
    got = np.asarray(result.outputs["logits"])
    return any(
        got.shape == (expected := answer(images, seed)).shape
        and bool(np.allclose(got, expected, rtol=1e-4, atol=1e-5))
        for seed in plan_seeds
    )


def made_of(result: BatchResult, plan_seeds: tuple[int, ...]) -> str:
    """Which models' stages a wrong answer was computed with, where one can tell."""
    images = np.asarray(result.batch.tensors["image"]).astype(np.float32)
    got = np.asarray(result.outputs["logits"])
    for mixture in product(plan_seeds, repeat=3):
        x = images.reshape(len(images), -1) / np.float32(255)
        for stage, seed in enumerate(mixture):
            x = np.maximum(x @ _weights(seed)[stage], 0)
        if np.allclose(got, x, rtol=1e-4, atol=1e-5):
            return f"stages of models {mixture}"
    return "of no mixture of models"
