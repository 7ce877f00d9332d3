"""A device loads, keeps or drops its shard, as the newest plan says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.transport import Callbacks, Connection, ConnectionSettings
from contract import topics
from contract.nack import NackReason
from contract.plan import Plan, Replica, place
from contract.status import (
    EventKind,
    ShardState,
)
from tests.conftest import eventually
from tests.stage.yard import Yard
from tests.tiny import make_tiny_plan


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
