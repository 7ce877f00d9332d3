"""The device agent: it announces itself, hears and answers, and ends in order."""

import json
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import broker.self_test
from broker.memory import MemoryBroker, MemoryConnection
from broker.transport import AckToken, Callbacks, Connection, ConnectionSettings, Delivery
from contract import topics
from contract.errors import NameTakenError, NotAuthorisedError, SettingsError
from contract.fleet import FleetView
from contract.metrics import DeviceMetrics
from contract.status import (
    DeviceState,
    DeviceStatus,
    ShardState,
)
from stage.agent import StageAgent, StageSettings
from tests.conftest import eventually
from tests.stage.harness import HandConnection, Listener
from tests.stage.yard import Yard


def test_a_device_announces_itself_with_what_it_has(yard: Yard) -> None:
    yard.start()
    status = yard.wait_for(ShardState.IDLE)
    assert (status.device, status.plan_id, status.error) == ("pi-1", None, None)
    assert status.capabilities is not None
    assert status.capabilities.engine == "onnxruntime"
    assert status.capabilities.cores >= 1
    late = Listener(yard.broker.connect, "late", topics.status_filter(yard.cluster))
    eventually(lambda: late.heard, "the status is retained")
    assert late.heard[0].retained
    late.close()


def test_the_identity_engine_answers_zeros_of_the_right_shape(yard: Yard) -> None:
    yard.start(engine="identity")
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.send_batch(0, images=3)
    eventually(lambda: yard.outputs(), "an output")
    answer = yard.outputs()[0].tensors["hidden_1"]
    assert answer.shape == (3, 12)
    assert answer.dtype == np.float32
    assert not answer.any()


def test_an_unknown_engine_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="abacus"):
        StageAgent(StageSettings("pi-1", tmp_path, engine="abacus"), MemoryBroker().connect)


@pytest.mark.parametrize("name", ["", "+", "a/b", "pipeline"])
def test_a_device_that_is_no_name_is_refused_before_anything_starts(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(SettingsError, match="name"):
        StageAgent(StageSettings(name, tmp_path), MemoryBroker().connect)


def test_an_orderly_end_says_stopped(yard: Yard) -> None:
    agent = yard.start()
    yard.wait_for(ShardState.IDLE)
    agent.stop()
    eventually(lambda: yard.statuses[-1].state is DeviceState.STOPPED, "stopped")


def test_the_end_is_prompt(yard: Yard) -> None:
    agent = yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    started = time.monotonic()
    agent.stop()
    eventually(lambda: yard.statuses[-1].state is DeviceState.STOPPED, "stopped")
    assert time.monotonic() - started < 2


def test_a_lost_connection_says_offline_with_the_boot_of_the_birth(yard: Yard) -> None:
    yard.start()
    birth = yard.wait_for(ShardState.IDLE)
    yard.connections[0].drop()
    eventually(lambda: yard.statuses[-1].state is DeviceState.OFFLINE, "offline")
    assert yard.statuses[-1].boot == birth.boot


def test_a_late_will_of_an_earlier_start_is_answered(yard: Yard) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    birth = yard.wait_for(ShardState.READY)
    will = DeviceStatus(device="pi-1", state=DeviceState.OFFLINE, boot=birth.boot + 1)
    topic = topics.status_topic(yard.cluster, "pi-1")
    yard.send(topic, will.model_dump_json().encode(), retain=True)
    eventually(lambda: will in yard.statuses, "the late will arrives")
    eventually(lambda: yard.statuses[-1] == birth, "the device announces itself again")


def test_a_foreign_status_message_is_survived(yard: Yard) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.observer.connection.close(forget_session=True)
    yard.observer = Listener(
        yard.broker.connect, "another", topics.input_filter(yard.cluster, "pi-2")
    )
    yard.send(topics.status_topic(yard.cluster, "pi-1"), b"hello", retain=True)
    yard.answers(0)


def test_metrics_come_once_a_second_with_every_field(yard: Yard) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    for seq in range(3):
        yard.answers(seq)
    eventually(lambda: len(yard.observer.of("metrics")) >= 3, "three metrics messages")
    documents = [json.loads(d.payload) for d in yard.observer.of("metrics")]
    for document in documents:
        assert set(document) == set(DeviceMetrics.model_fields)
    first, second, third = documents[:3]
    for before, after in ((first, second), (second, third)):
        assert 0.8 < after["uptime_s"] - before["uptime_s"] < 2.5
    assert third["batches_total"] == 3
    assert third["images_total"] == 6
    assert third["rss_bytes"] > 1_000_000
    assert (third["plan_id"], third["stage_index"], third["shard"]) == (
        yard.plan.plan_id,
        1,
        "ready",
    )
    busy = next(d for d in documents if d["batches_per_s"])
    assert busy["compute_ms_mean"] > 0
    assert busy["publish_ms_mean"] is not None
    assert 0 <= busy["utilisation"] <= 1
    assert third["queue_depth"] == 0
    assert yard.observer.of("metrics")[0].qos == 0


def test_bad_messages_are_counted_and_reported_at_most_once_a_second(yard: Yard) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    topic = topics.input_topic(yard.cluster, "pi-1", yard.plan.plan_id, 1, "pi-0")
    for index in range(150):
        yard.send(topic, b"rubbish %d" % index)
    for index in range(50):
        yard.send_batch(500 + index, qos=0)
    yard.answers(0)
    metrics = lambda: yard.observer.payloads("metrics", DeviceMetrics.model_validate_json)  # noqa: E731
    eventually(lambda: any(m.rejected_total == 200 for m in metrics()), "200 rejected")
    eventually(lambda: sum(event.count for event in yard.rejections) == 200, "200 reported")
    assert len(yard.rejections) <= 5
    assert metrics()[-1].nacks_total == 0
    assert {event.sender for event in yard.rejections} == {"pi-1"}


def test_a_message_at_qos_0_is_rejected(yard: Yard) -> None:
    """The receive maximum does not hold it back, so it could fill the memory of a device."""
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.send_batch(7, qos=0)
    eventually(lambda: yard.rejections, "an event")
    assert "QoS 0" in yard.rejections[0].detail
    yard.answers(8)
    assert [o.header.batch_id.seq for o in yard.outputs()] == [8]


def test_what_a_session_delivers_at_once_does_not_hurt_the_start(tmp_path: Path) -> None:
    """A broker that kept the session may deliver before `connect` has returned."""
    connection = HandConnection(automatic=True)

    def connect(settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        callbacks.on_connected(True)
        for qos in (0, 1):
            token = AckToken(lambda: None)
            topic = topics.input_topic("home", "pi-1", "0" * 16, 0, "pi-0")
            callbacks.on_delivery(Delivery(topic, b"early", qos, False, token))
        return connection

    agent = StageAgent(StageSettings("pi-1", tmp_path, "home"), connect)
    agent.stop()
    agent.run()
    assert any(b"stopped" in p.payload for p in connection.published)


def test_the_queue_of_a_device_is_bounded_by_its_receive_maximum(yard: Yard) -> None:
    """With the last output unacknowledged by the broker, no more than three batches come in."""
    held: list[Future[Any]] = []
    real_publish = MemoryConnection.publish

    class Holding:
        def __init__(self, connection: MemoryConnection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        def publish(self, topic: str, payload: bytes, **more: Any) -> "Future[Any]":
            if "/in/" in topic and "/pi-2/" in topic:
                future: Future[Any] = Future()
                held.append(future)
                return future
            return real_publish(self._connection, topic, payload, **more)

    def connect(settings: ConnectionSettings, callbacks: Callbacks) -> Any:
        assert settings.receive_maximum == 3
        return Holding(yard.connect(settings, callbacks))  # type: ignore[arg-type]

    yard._start("pi-1", yard.folder, connect=connect)
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    for seq in range(10):
        yard.send_batch(seq)
    eventually(lambda: len(held) == 3, "three outputs")
    session = yard.connections[0].session
    eventually(lambda: len(session.waiting) == 7, "the rest waits at the broker")
    assert len(held) == 3
    from broker.transport import PublishOutcome

    held[0].set_result(PublishOutcome.ACCEPTED)
    eventually(lambda: len(held) == 4, "one more comes in for the one that is done")
    for future in held[1:]:
        future.set_result(PublishOutcome.ACCEPTED)


def test_batches_that_wait_for_a_stage_are_held_until_its_plan_is_read(yard: Yard) -> None:
    """They come first, as many as the receive maximum lets through, and none is refused."""
    yard.publish_plan(yard.plan)
    agent = yard.start()
    yard.wait_for(ShardState.READY)
    agent.stop()
    eventually(lambda: yard.statuses[-1].state is DeviceState.STOPPED, "stopped")
    for seq in range(8):
        yard.send_batch(seq)
    yard.start()
    eventually(lambda: len(yard.outputs()) == 8, "all are answered")
    assert [o.header.batch_id.seq for o in yard.outputs()] == list(range(8))
    assert yard.nacks == []


def test_a_stage_that_does_not_hear_itself_ends_and_says_why(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.self_test, "PATIENCE_S", 0.5)
    inputs = f"/device/pi-1/in/{'0' * 16}/"

    def connect(settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        def on_delivery(delivery: Delivery) -> None:
            if inputs not in delivery.topic:  # the broker has the right to read there forgotten
                callbacks.on_delivery(delivery)

        return yard.connect(settings, replace(callbacks, on_delivery=on_delivery))

    agent = StageAgent(StageSettings("pi-1", yard.folder, yard.cluster), connect)
    with pytest.raises(NotAuthorisedError, match="does not hear its own messages") as caught:
        agent.run()
    assert inputs in str(caught.value)
    assert "/command/" not in str(caught.value)
    eventually(lambda: yard.statuses[-1].state is DeviceState.STOPPED, "it has ended")
    assert "does not hear" in str(yard.statuses[-1].error)
    view = FleetView()
    view.update(yard.statuses[-1])
    assert "does not hear" in view.describe("pi-1")


def test_what_cannot_be_mended_ends_the_stage(yard: Yard) -> None:
    fail: list[Any] = []

    def connect(settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        fail.append(callbacks.on_failed)
        return yard.connect(settings, callbacks)

    agent = StageAgent(StageSettings("pi-1", yard.folder, yard.cluster), connect)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            agent.run()
        except NameTakenError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yard.wait_for(ShardState.IDLE)
    fail[0](NameTakenError("another process uses the name 'pi-1'"))
    thread.join(timeout=10)
    assert raised
    eventually(lambda: yard.statuses[-1].state is DeviceState.STOPPED, "it has ended")
    assert yard.statuses[-1].error == "another process uses the name 'pi-1'"


def test_the_marker_of_a_batch_in_work_lies_in_the_cache(yard: Yard, tmp_path: Path) -> None:
    yard.start(cache_dir=tmp_path / "cache")
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.answers(0)
    assert (tmp_path / "cache" / "pi-1.computing").is_file()
