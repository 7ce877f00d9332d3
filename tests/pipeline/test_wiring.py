"""Three stages and a client over a real Mosquitto: every batch comes back, right, and once."""

import secrets
from pathlib import Path

import numpy as np
import pytest

from broker.transport import Callbacks, Connect, ConnectionSettings
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.plan import Plan
from tests.conftest import StartStage
from tests.tiny import HEIGHT, WIDTH, make_tiny_plan, tiny_answer


def make_batches(count: int, size: int = 4) -> list[Batch]:
    generator = np.random.default_rng(1)
    return [
        Batch(
            {"image": generator.integers(0, 256, (size, 1, HEIGHT, WIDTH), dtype=np.uint8)},
            tuple(f"{index}/{i}" for i in range(size)),
        )
        for index in range(count)
    ]


def publish_plan(connect: Connect, plan: Plan, cluster: str) -> None:
    connection = connect(
        ConnectionSettings(name=f"planner-{secrets.token_hex(4)}"),
        Callbacks(on_delivery=lambda delivery: delivery.ack()),
    )
    topic = topics.plan_topic(cluster)
    connection.publish(topic, plan.to_json().encode(), retain=True).result(timeout=5)
    connection.close(forget_session=True)


@pytest.mark.parametrize("window", [1, None])
def test_every_batch_returns_right_and_once(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    start_stage: StartStage,
    window: int | None,
) -> None:
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    settings = ClientSettings(name=f"client-{unique}", cluster=cluster, window=window)
    batches = make_batches(100)
    with Pipeline(settings, connect) as pipeline:
        pipeline.open()
        results = list(pipeline.run(batches))
        counts = pipeline.counts(finished=True)
    assert all(isinstance(result, BatchResult) for result in results)
    assert sorted(result.batch_id.seq for result in results) == list(range(100))
    for result in results:
        assert isinstance(result, BatchResult)
        expected = tiny_answer(np.asarray(result.batch.tensors["image"]))
        np.testing.assert_allclose(result.outputs["logits"], expected, rtol=1e-5, atol=1e-6)
        assert len(result.hops) == 3
    assert (counts.submitted, counts.delivered, counts.lost, counts.dead) == (100, 100, 0, 0)
    assert counts.duplicates_dropped == 0
