"""A device far from the broker, run for real and simulated: the receive maximum bounds it.

In the in-process broker, since Mosquitto 2.0.11 sends more than a receiver allowed (its #2306).
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.memory import MemoryBroker
from broker.transport import (
    AckToken,
    Callbacks,
    Connection,
    ConnectionSettings,
    Delivery,
    PublishOutcome,
)
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.plan import Replica, place
from planner.cost_model import batches_per_s
from planner.problem import DeviceCosts, Link, Problem, RelayCosts, StageChoice
from planner.simulation.simulate import simulate
from tests.conftest import StartStage
from tests.tiny import make_tiny_plan

LATENCY_S = 0.05
WINDOW = 12


class FarConnection:
    """A connection whose every message, either way, is ``LATENCY_S`` on its way."""

    def __init__(
        self, broker: MemoryBroker, settings: ConnectionSettings, callbacks: Callbacks
    ) -> None:
        def hear(delivery: Delivery) -> None:
            token = AckToken(lambda: later(delivery.ack))
            later(
                lambda: callbacks.on_delivery(
                    Delivery(
                        delivery.topic, delivery.payload, delivery.qos, delivery.retained, token
                    )
                )
            )

        self._near: Connection = broker.connect(
            settings, Callbacks(hear, callbacks.on_connected, callbacks.on_disconnected)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._near, name)

    def publish(self, topic: str, payload: bytes, **more: Any) -> "Future[PublishOutcome]":
        future: Future[PublishOutcome] = Future()

        def arrived(outcome: "Future[PublishOutcome]") -> None:
            later(lambda: future.set_result(outcome.result()))

        later(lambda: self._near.publish(topic, payload, **more).add_done_callback(arrived))
        return future


def later(action: Callable[[], Any]) -> None:
    timer = threading.Timer(LATENCY_S, action)
    timer.daemon = True
    timer.start()


@pytest.fixture
def pipeline(tmp_path: Path, cluster: str, start_stage: StartStage) -> Iterator[Pipeline]:
    broker = MemoryBroker()
    plan = make_tiny_plan(tmp_path, devices=())
    plan = place(plan, [[Replica(device=name)] for name in ("pi-0", "far", "pi-2")], cluster)
    publisher = broker.connect(ConnectionSettings(name="planner"), Callbacks(lambda _: None))
    publisher.publish(topics.plan_topic(cluster), plan.to_json().encode(), retain=True)
    start_stage("pi-0", tmp_path, connect=broker.connect)
    start_stage("far", tmp_path, connect=lambda *args: FarConnection(broker, *args))
    start_stage("pi-2", tmp_path, connect=broker.connect)
    settings = ClientSettings(name="client", cluster=cluster, window=WINDOW)
    with Pipeline(settings, broker.connect) as pipeline:
        pipeline.open()
        yield pipeline


def test_a_far_device_does_what_the_simulation_and_the_cost_model_say(
    pipeline: Pipeline,
) -> None:
    images = np.zeros((1, 1, 2, 3), np.uint8)
    batches = (Batch({"image": images}, ("dummy",)) for _ in range(4 * WINDOW))
    times = []
    for ended in pipeline.run(batches):
        assert isinstance(ended, BatchResult)
        times.append(time.monotonic())
    real = (3 * WINDOW - 1) / (times[-1] - times[WINDOW])

    devices = tuple(
        DeviceCosts(
            name,
            (1.0, 1.0, 1.0),
            RelayCosts(0.5, 0.0),
            Link(latency_ms=LATENCY_S * 1e3 if name == "far" else 0.0),
        )
        for name in ("pi-0", "far", "pi-2")
    )
    problem = Problem(devices, (0,) * 3, (0,) * 3, (1000,) * 4, window_batches=3)
    stages = tuple(StageChoice(k, k + 1, (device.name,)) for k, device in enumerate(devices))
    simulated = simulate(problem, stages, WINDOW).batches_per_s
    assert simulated == pytest.approx(3 / (4 * LATENCY_S), rel=0.03)
    assert 0.6 * simulated < real < 1.15 * simulated  # other processes may slow it down
    assert batches_per_s(problem, stages) == pytest.approx(simulated, rel=0.03)
