"""The device agent: it announces itself, obeys the plan, loads one shard, and ends in order."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import broker.self_test
import stage.loader
from broker.memory import MemoryBroker, MemoryConnection
from broker.transport import AckToken, Callbacks, Connection, ConnectionSettings, Delivery
from contract import topics
from contract.activation import BatchId, Header, decode, encode
from contract.errors import NameTakenError, NotAuthorisedError, SettingsError
from contract.fleet import FleetView
from contract.metrics import DeviceMetrics
from contract.nack import Nack, NackReason, parse_nack
from contract.plan import Plan, Replica, place
from contract.status import (
    DeviceState,
    DeviceStatus,
    Event,
    EventKind,
    ShardState,
    parse_status,
)
from stage.agent import StageAgent, StageSettings
from tests.conftest import StartStage, eventually
from tests.stage.harness import CLIENT, EPOCH, HandConnection, Listener, hidden
from tests.tiny import make_tiny_plan, tiny_weights


class Yard:
    """One agent, pi-1, on a broker in memory; the test is its planner, its client and its next."""

    def __init__(
        self, folder: Path, cluster: str, start_stage: StartStage, broker: MemoryBroker
    ) -> None:
        self.folder, self.cluster, self.broker = folder, cluster, broker
        self.plan = make_tiny_plan(folder, cluster=cluster)
        self.connections: list[MemoryConnection] = []
        self.observer = Listener(
            broker.connect,
            "observer",
            topics.status_filter(cluster),
            topics.metrics_filter(cluster),
            topics.event_filter(cluster),
            topics.nack_filter(cluster, CLIENT),
            topics.result_filter(cluster, CLIENT),
            topics.input_filter(cluster, "pi-2"),
            topics.input_filter(cluster, "pi-0"),
        )
        self._start = start_stage

    def connect(self, settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        connection = self.broker.connect(settings, callbacks)
        assert isinstance(connection, MemoryConnection)
        self.connections.append(connection)
        return connection

    def start(self, **settings: Any) -> StageAgent:
        settings.setdefault("shards_dir", self.folder)
        shards_dir = settings.pop("shards_dir")
        return self._start("pi-1", shards_dir, connect=self.connect, **settings)

    def publish_plan(self, plan: Plan | None) -> None:
        payload = b"" if plan is None else plan.to_json().encode()
        self.send(topics.plan_topic(self.cluster), payload, retain=True)

    def send(self, topic: str, payload: bytes, **more: Any) -> None:
        self.observer.connection.publish(topic, payload, **more)

    @property
    def statuses(self) -> list[DeviceStatus]:
        return self.observer.payloads("status", parse_status)

    @property
    def events(self) -> list[Event]:
        return self.observer.payloads("event", Event.model_validate_json)

    @property
    def rejections(self) -> list[Event]:
        return [e for e in self.events if e.kind is EventKind.MESSAGE_REJECTED]

    @property
    def nacks(self) -> list[Nack]:
        return self.observer.payloads("nack", parse_nack)

    def wait_for(self, shard: ShardState, plan: Plan | None = None) -> DeviceStatus:
        def reached() -> bool:
            last = self.statuses[-1:] or [None]
            return (
                last[0] is not None
                and last[0].state is DeviceState.ONLINE
                and last[0].shard is shard
                and (plan is None or last[0].plan_id == plan.plan_id)
            )

        eventually(reached, f"the shard is {shard}")
        return self.statuses[-1]

    def send_batch(
        self, seq: int = 0, plan: Plan | None = None, images: int = 2, **more: Any
    ) -> None:
        plan = plan or self.plan
        header = Header(
            plan_id=plan.plan_id,
            batch_id=BatchId(EPOCH, seq),
            attempt=0,
            low=0,
            stage_index=1,
            route=("pi-0", "pi-1", "pi-2"),
            client=CLIENT,
            sent_us=1,
        )
        topic = topics.input_topic(self.cluster, "pi-1", plan.plan_id, 1, "pi-0")
        self.send(topic, encode(header, {"hidden_0": hidden(images, seq)}), **more)

    def outputs(self) -> list[Any]:
        return self.observer.payloads("input", decode)

    def answers(self, seq: int, plan: Plan | None = None, seed: int = 0, images: int = 2) -> None:
        self.send_batch(seq, plan, images)
        eventually(
            lambda: any(o.header.batch_id.seq == seq for o in self.outputs()),
            f"batch {seq} is answered; refused: {self.nacks}",
        )
        [output] = [o for o in self.outputs() if o.header.batch_id.seq == seq]
        expected = np.maximum(hidden(images, seq) @ tiny_weights(seed)[1], 0)
        np.testing.assert_allclose(output.tensors["hidden_1"], expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def yard(tmp_path: Path, cluster: str, start_stage: StartStage) -> Iterator[Yard]:
    yard = Yard(tmp_path, cluster, start_stage, MemoryBroker())
    yield yard
    yard.observer.close()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the shards that an engine was made for."""
    made: list[Path] = []
    original = stage.loader.load_engine

    def counted(name: str, shard: Any, *more: Any) -> Any:
        made.append(shard.folder)
        return original(name, shard, *more)

    monkeypatch.setattr(stage.loader, "load_engine", counted)
    return made


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


def test_a_device_loads_its_stage_and_answers(yard: Yard) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    status = yard.wait_for(ShardState.READY)
    assert (status.plan_id, status.stage_index) == (yard.plan.plan_id, 1)
    shards = [s.shard for s in yard.statuses]
    assert ShardState.LOADING in shards[: shards.index(ShardState.READY)]
    yard.answers(0)


def test_a_plan_that_was_published_before_is_obeyed(yard: Yard) -> None:
    yard.publish_plan(yard.plan)
    yard.start()
    yard.wait_for(ShardState.READY)


def test_only_the_own_shard_is_needed_and_loaded(yard: Yard, loads: list[Path]) -> None:
    for other in ("stage-0", "stage-2"):
        shutil.rmtree(yard.folder / "tiny" / other)
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    assert loads == [yard.folder / "tiny" / "stage-1"]
    yard.answers(0)


def test_before_its_shard_is_there_a_device_refuses_as_not_ready(yard: Yard) -> None:
    yard.start()
    yard.wait_for(ShardState.IDLE)
    yard.send_batch()
    eventually(lambda: yard.nacks, "a refusal")
    assert yard.nacks[0].reason is NackReason.NOT_READY


def test_a_plan_without_this_device_leaves_it_idle(yard: Yard) -> None:
    yard.start()
    elsewhere = place(yard.plan, [[Replica(device=d)] for d in ("a", "b", "c")], yard.cluster)
    yard.publish_plan(elsewhere)
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.publish_plan(elsewhere)
    yard.wait_for(ShardState.IDLE)
    yard.send_batch()
    eventually(lambda: yard.nacks, "a refusal")
    assert yard.nacks[0].reason is NackReason.NOT_READY


def _missing(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def _flipped(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _truncated(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _graph_gone(folder: Path) -> None:
    (folder / "graph.onnx").unlink()


def _manifest_broken(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def _all_gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_missing, "weights.safetensors"),
        (_flipped, "weights.safetensors"),
        (_truncated, "weights.safetensors"),
        (_graph_gone, "graph.onnx"),
        (_manifest_broken, "manifest.json"),
        (_all_gone, "stage-1"),
    ],
)
def test_a_damaged_shard_is_told_and_loaded_once_repaired(
    yard: Yard, damage: Callable[[Path], None], named: str, tmp_path: Path, loads: list[Path]
) -> None:
    folder = yard.folder / "tiny" / "stage-1"
    spare = tmp_path / "spare"
    shutil.copytree(folder, spare)
    damage(folder)
    yard.start()
    yard.publish_plan(yard.plan)
    status = yard.wait_for(ShardState.FAILED)
    assert (status.plan_id, status.stage_index) == (yard.plan.plan_id, 1)
    assert status.error is not None
    assert named in status.error
    assert "shardline plan" in status.error
    assert loads == []
    eventually(
        lambda: [e for e in yard.events if e.kind is EventKind.SHARD_FAILED], "an event tells it"
    )
    yard.send_batch(99)
    eventually(lambda: yard.nacks, "a refusal: the agent is alive")

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(spare, folder)
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.answers(0)


def test_a_graph_that_the_engine_cannot_load_is_told(yard: Yard) -> None:
    """The hashes fit: the plan itself was built of a broken graph."""
    from contract.plan import compute_plan_id
    from shards.manifest import load_manifest
    from shards.writer import describe_file, write_manifest

    folder = yard.folder / "tiny" / "stage-1"
    (folder / "graph.onnx").write_bytes(b"not onnx at all")
    document = json.loads(yard.plan.to_json())
    graph = describe_file(folder / "graph.onnx")
    document["stages"][1]["graph"] = graph.model_dump()
    stages = list(yard.plan.stages)
    stages[1] = stages[1].model_copy(update={"graph": graph})
    document["plan_id"] = compute_plan_id(yard.plan.model.digest, stages)
    broken = Plan.model_validate_json(json.dumps(document))
    manifest = load_manifest(folder).model_copy(update={"plan_id": broken.plan_id, "graph": graph})
    write_manifest(folder, manifest)
    yard.start()
    yard.publish_plan(broken)
    status = yard.wait_for(ShardState.FAILED)
    assert "graph.onnx" in str(status.error)


def test_a_new_plan_replaces_the_shard(yard: Yard, loads: list[Path]) -> None:
    other = make_tiny_plan(yard.folder, seed=1, name="other", cluster=yard.cluster)
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY, yard.plan)
    yard.answers(0)
    yard.publish_plan(other)
    yard.wait_for(ShardState.READY, other)
    yard.send_batch(1, plan=yard.plan)
    eventually(lambda: yard.nacks, "the old plan is refused")
    assert yard.nacks[0].reason is NackReason.PLAN_MISMATCH
    yard.answers(2, plan=other, seed=1)
    assert loads == [yard.folder / "tiny" / "stage-1", yard.folder / "other" / "stage-1"]


def test_the_engine_of_the_old_plan_is_closed(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    from stage.engines.identity import IdentityEngine

    closed: list[object] = []
    monkeypatch.setattr(IdentityEngine, "close", lambda self: closed.append(self))
    yard.start(engine="identity")
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.publish_plan(None)
    yard.wait_for(ShardState.IDLE)
    assert len(closed) == 1


def test_the_same_stage_in_another_placement_keeps_the_engine(
    yard: Yard, loads: list[Path]
) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    moved = place(yard.plan, [[Replica(device=d)] for d in ("x", "pi-1", "z")], yard.cluster)
    assert moved.plan_id == yard.plan.plan_id
    yard.publish_plan(moved)
    yard.answers(0)
    assert len(loads) == 1
    shards = [s.shard for s in yard.statuses]
    assert set(shards[shards.index(ShardState.READY) :]) == {ShardState.READY}


def test_another_stage_of_the_same_plan_is_loaded(yard: Yard, loads: list[Path]) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    moved = place(yard.plan, [[Replica(device=d)] for d in ("x", "y", "pi-1")], yard.cluster)
    yard.publish_plan(moved)
    eventually(lambda: len(loads) == 2, "the other shard is loaded")
    eventually(lambda: yard.statuses[-1].stage_index == 2, "it says so")
    assert yard.wait_for(ShardState.READY).stage_index == 2


def test_the_same_stages_with_a_larger_batch_take_larger_batches(yard: Yard) -> None:
    """The batch size is not part of the plan id, so the engine is kept, but not the old limit."""
    images = yard.plan.max_message_bytes() // (16 * 4) + 1
    larger = Plan.model_validate({**dict(yard.plan), "batch_size": images})
    assert larger.plan_id == yard.plan.plan_id
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.publish_plan(larger)
    yard.answers(0, images=images)


def test_a_retired_plan_leaves_the_device_idle(yard: Yard) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.publish_plan(None)
    yard.wait_for(ShardState.IDLE)


@pytest.mark.parametrize("payload", [b"hello", b"{}", b"\xff", b"[" * 1000])
def test_a_malformed_plan_is_reported_and_the_shard_stays(yard: Yard, payload: bytes) -> None:
    yard.start()
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.send(topics.plan_topic(yard.cluster), payload)
    eventually(lambda: yard.rejections, "an event")
    yard.answers(0)


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


def test_a_plan_larger_than_the_broker_s_packets_is_not_loaded(
    yard: Yard, loads: list[Path]
) -> None:
    real_connect = yard.connect

    def connect(settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        connection = real_connect(settings, callbacks)
        connection.max_packet_bytes = 500  # type: ignore[misc]
        return connection

    yard.connect = connect  # type: ignore[method-assign]
    yard.start()
    yard.publish_plan(yard.plan)
    status = yard.wait_for(ShardState.FAILED)
    assert "max_packet_size" in str(status.error)
    assert loads == []


def test_the_marker_of_a_batch_in_work_lies_in_the_cache(yard: Yard, tmp_path: Path) -> None:
    yard.start(cache_dir=tmp_path / "cache")
    yard.publish_plan(yard.plan)
    yard.wait_for(ShardState.READY)
    yard.answers(0)
    assert (tmp_path / "cache" / "pi-1.computing").is_file()
