"""Stages that compress what they send, over a real Mosquitto: answers stay within the bound."""

from pathlib import Path

import numpy as np
import pytest

from broker.transport import Connect
from client.batch import BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.codec import CODECS, Codec
from tests.conftest import StartStage
from tests.pipeline.test_wiring import make_batches, publish_plan
from tests.tiny import make_tiny_plan, tiny_answer, tiny_weights


def largest_error(codec: Codec, values: np.ndarray) -> np.ndarray:
    """What the codec may change in each value of (N, C) activations."""
    if codec == "float32":
        return np.zeros_like(values)
    if codec == "float16":
        return np.abs(values) * 2.0**-11
    return np.broadcast_to(np.abs(values).max(axis=1, keepdims=True) / 254, values.shape)


def bounds(images: np.ndarray, codecs: tuple[Codec, Codec]) -> np.ndarray:
    """How far each answer may be off: errors grow by the absolute weights, ReLU adds none."""
    x = images.astype(np.float32).reshape(len(images), -1) / 255
    error = np.zeros_like(x)
    last: Codec = "float32"
    for weight, codec in zip(tiny_weights(), (*codecs, last), strict=True):
        x, error = np.maximum(x @ weight, 0), error @ np.abs(weight)
        error = error + largest_error(codec, x + error)
    return error


@pytest.mark.parametrize("codecs", [*zip(CODECS[1:], CODECS[1:], strict=True), ("int8", "float16")])
def test_answers_of_a_pipeline_with_codecs_stay_within_the_bound(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    start_stage: StartStage,
    codecs: tuple[Codec, Codec],
) -> None:
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster, codecs=codecs)
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    batches = make_batches(10)
    with Pipeline(ClientSettings(name=f"client-{unique}", cluster=cluster), connect) as pipeline:
        pipeline.open()
        results = list(pipeline.run(batches))
    differences = []
    for result in results:
        assert isinstance(result, BatchResult)
        images = np.asarray(result.batch.tensors["image"])
        difference = np.abs(result.outputs["logits"] - tiny_answer(images))
        assert (difference <= bounds(images, codecs) * 1.001 + 1e-6).all()
        differences.append(difference.max())
    assert len(differences) == len(batches)
    assert max(differences) > 1e-4  # so it was compressed
