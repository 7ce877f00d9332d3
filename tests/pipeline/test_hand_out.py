"""Shards reach the devices over the broker: whole, resumed, verified, beside running batches."""

import threading
import time
from pathlib import Path

import pytest

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from contract import topics
from contract.errors import DeliveryError, ShardError
from contract.status import EventKind
from planner.publish import Publisher
from tests.conftest import StartStage, eventually
from tests.pipeline.hand_out_fleet import BALLAST, DEVICES, Fleet, sizes


def test_devices_with_empty_disks_get_their_shards_and_serve_them(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a device may wait for longer than two seconds, and would ask again.
    monkeypatch.setattr("shards.download.FIRST_PATIENCE_S", 30.0)
    for device in DEVICES:
        fleet.start(device)
    fleet.publish()
    fleet.runs()
    total = sum(sizes(fleet.plan, index) for index in range(3))
    assert total <= fleet.wire.blob_bytes <= 1.01 * total
    # each device was sent its own stage and nothing else
    for topic, chunk in fleet.wire.chunks:
        device = topics.parse_topic(topic).to
        index = DEVICES.index(str(device))
        stage = fleet.plan.stages[index]
        assert chunk.sha256 in (stage.graph.sha256, stage.weights.sha256)


def test_what_a_device_has_is_not_sent_again(fleet: Fleet) -> None:
    for device in DEVICES:
        fleet.start(device)
    fleet.hand_out()
    sent = fleet.wire.blob_bytes
    fleet.publish()
    assert fleet.wire.blob_bytes == sent


def test_a_copied_folder_makes_the_transfer_needless(fleet: Fleet, start_stage: StartStage) -> None:
    for device in DEVICES:
        start_stage(device, fleet.folder / "built", cache_dir=fleet.folder / device)
    fleet.publish()
    fleet.runs()
    assert fleet.wire.blob_bytes == 0


def test_a_device_that_restarts_needs_no_planner(fleet: Fleet) -> None:
    agents = [fleet.start(device) for device in DEVICES]
    fleet.publish()
    agents[1].stop()  # type: ignore[attr-defined]
    time.sleep(0.3)
    fleet.start("pi-1")
    fleet.runs()


def test_progress_rises_to_the_end_for_every_device(fleet: Fleet) -> None:
    for device in DEVICES:
        fleet.start(device)
    shares = fleet.hand_out()
    assert shares[-3:] == [1.0, 1.0, 1.0]
    assert all(0 <= share <= 1 for share in shares)


def test_a_cut_in_the_middle_is_resumed_where_it_was(fleet: Fleet) -> None:
    for device in DEVICES:
        fleet.start(device)
    half = threading.Event()

    def cut_at_half(topic: str, payload: bytes) -> bytes | None:
        if topics.parse_topic(topic).kind == "blob" and fleet.wire.blob_bytes > 3 * BALLAST // 2:
            half.set()
            return None
        return payload

    fleet.wire.alter = cut_at_half
    with pytest.raises(DeliveryError, match="stopped by the test"):
        _hand_out_until(fleet, half)
    fleet.wire.alter = lambda _topic, payload: payload
    first, fleet.wire.blob_bytes = fleet.wire.blob_bytes, 0
    fleet.publish()
    fleet.runs()
    total = sum(sizes(fleet.plan, index) for index in range(3))
    # what was lost on the way was in flight: at most a window for each device
    assert fleet.wire.blob_bytes < total - first + 3 * 8 * 140_000
    assert fleet.wire.blob_bytes < 0.8 * total


def _hand_out_until(fleet: Fleet, done: threading.Event) -> None:
    """A planner that is stopped in the middle, as Ctrl-C stops it."""

    def progress(_what: str, _share: float) -> None:
        if done.is_set():
            raise DeliveryError("stopped by the test")

    with Publisher(fleet.wire.connect, fleet.cluster, f"planner-{fleet.cluster}") as publisher:
        publisher.hand_out(fleet.plan, fleet.built, 20, progress)


def test_a_damaged_chunk_is_refused_reported_and_asked_for_again(fleet: Fleet) -> None:
    for device in DEVICES:
        fleet.start(device)
    damaged: list[str] = []

    def flip_a_bit(topic: str, payload: bytes) -> bytes:
        if len(payload) > 50_000 and len(damaged) < 3:
            damaged.append(topic)
            return payload[:-5] + bytes([payload[-5] ^ 1]) + payload[-4:]
        return payload

    fleet.wire.alter = flip_a_bit
    fleet.publish()
    fleet.runs()
    assert len(damaged) == 3
    eventually(
        lambda: any("checksum" in e for e in fleet.events(EventKind.MESSAGE_REJECTED)),
        "the damage is reported",
    )


def test_a_planner_that_hands_out_other_bytes_is_found_out_by_the_hash(fleet: Fleet) -> None:
    """Every chunk is well-formed, the file is not the one that the plan names."""
    for device in DEVICES:
        fleet.start(device)
    weights = fleet.built / "stage-1" / "weights.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(ShardError, match=r"device pi-1: .*expected sha256"):
        fleet.publish()
    assert not fleet.weights_in_cache("pi-1", 1)
    assert not (fleet.folder / "pi-1" / "partial" / fleet.plan.stages[1].weights.sha256).exists()


def test_lost_messages_only_cost_time(fleet: Fleet) -> None:
    for device in DEVICES:
        fleet.start(device)
    count = 0

    def lose_every_ninth(topic: str, payload: bytes) -> bytes | None:
        nonlocal count
        if topics.parse_topic(topic).kind != "blob":
            return payload
        count += 1
        return None if count % 9 == 0 else payload

    fleet.wire.alter = lose_every_ninth
    fleet.publish(patience_s=60)
    fleet.runs()


def test_a_broker_that_dies_in_the_middle_costs_time_only(
    tmp_path: Path, cluster: str, start_stage: StartStage, own_broker: EmbeddedBroker
) -> None:
    connect = Connector(own_broker.address)
    fleet = Fleet(tmp_path, cluster, start_stage, connect)
    for device in DEVICES:
        fleet.start(device, connect=connect)
    restarted = threading.Event()

    def restart_at_half(topic: str, payload: bytes) -> bytes:
        if fleet.wire.blob_bytes > 3 * BALLAST // 2 and not restarted.is_set():
            restarted.set()
            own_broker.kill()
            own_broker.start()
        return payload

    fleet.wire.alter = restart_at_half
    fleet.publish(patience_s=60)
    fleet.runs()
    fleet.observer.close()
    assert restarted.is_set()
