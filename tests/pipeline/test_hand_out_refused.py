"""A hand-out that cannot be: absent devices, full disks, strangers, bad copies, two planners."""

import shutil
import threading
import time

import pytest

from broker.transport import Callbacks, ConnectionSettings
from contract import topics
from contract.blob import BlobChunk, BlobRefusal, BlobRequest, encode_chunk, parse_blob
from contract.command import Fetch
from contract.errors import DeliveryError, ShardError, ShardMissingError
from planner.publish import Publisher
from tests.conftest import eventually
from tests.pipeline.hand_out_fleet import BALLAST, DEVICES, Fleet
from tests.stage.harness import Listener
from tests.tiny import make_tiny_plan


def test_a_device_that_is_not_there_is_named_and_nothing_is_published(fleet: Fleet) -> None:
    fleet.start("pi-0")
    fleet.start("pi-2")
    with pytest.raises(DeliveryError, match=r"pi-1 is not seen.*shardline stage.*nothing was"):
        fleet.publish(patience_s=1.5)
    seen = Listener(fleet.connect, f"second-{fleet.cluster}", topics.plan_topic(fleet.cluster))
    time.sleep(0.3)
    assert seen.payloads("plan", bytes) == []
    seen.close()


def test_a_file_that_the_planner_lacks_is_told_before_anything_is_sent(fleet: Fleet) -> None:
    (fleet.built / "stage-2" / "weights.safetensors").unlink()
    with pytest.raises(ShardMissingError, match=r"stage-2/weights\.safetensors"):
        fleet.hand_out()
    assert fleet.wire.blob_bytes == 0


def test_a_disk_without_room_is_told_with_its_figures(fleet: Fleet) -> None:
    fleet.start("pi-0")
    fleet.start("pi-1", cache_limit_bytes=1_000_000)
    fleet.start("pi-2")
    with pytest.raises(ShardError, match=r"device pi-1: .*needs 3\.0 MB.*limit of 1 MB"):
        fleet.publish()


def test_a_damaged_file_in_the_cache_is_thrown_out_and_fetched_anew(fleet: Fleet) -> None:
    agents = [fleet.start(device) for device in DEVICES]
    fleet.hand_out()
    agents[1].stop()  # type: ignore[attr-defined]
    blob = fleet.folder / "pi-1" / "blobs" / fleet.plan.stages[1].weights.sha256
    blob.write_bytes(bytes(blob.stat().st_size))
    time.sleep(0.3)
    fleet.start("pi-1")
    with pytest.raises(ShardError, match=r"pi-1: .*thrown out of the cache"):
        fleet.publish()
    fleet.publish()
    fleet.runs()


def test_pieces_from_a_stranger_are_reported_and_not_written(fleet: Fleet) -> None:
    """Someone with a name of its own sends well-formed chunks for what the device is fetching."""
    for device in DEVICES:
        fleet.start(device)
    stranger = fleet.connect(
        ConnectionSettings(name=f"stranger-{fleet.cluster}"),
        Callbacks(on_delivery=lambda d: d.ack()),
    )
    sha = fleet.plan.stages[1].weights.sha256
    topic = topics.blob_topic(fleet.cluster, "pi-1", f"stranger-{fleet.cluster}")

    def slip_in(_topic: str, payload: bytes) -> bytes:
        for offset in range(0, 10 * 131_072, 131_072):
            stranger.publish(topic, encode_chunk(BlobChunk(sha, offset, bytes(131_072))), qos=0)
        fleet.wire.alter = lambda _t, p: p
        return payload

    fleet.wire.alter = slip_in
    fleet.publish()
    fleet.runs()
    stranger.close(forget_session=True)


@pytest.mark.parametrize("sha256", ["0" * 64, "of another stage"])
def test_a_planner_hands_out_nothing_but_the_plans_files(fleet: Fleet, sha256: str) -> None:
    """A device may ask for any file of the plan; a hash that is not of it names no file at all."""
    for device in DEVICES:
        fleet.start(device)
    answers = Listener(
        fleet.connect,
        f"asker-{fleet.cluster}",
        topics.blob_filter(fleet.cluster, f"asker-{fleet.cluster}"),
    )
    known = sha256 != "0" * 64
    wanted = fleet.plan.stages[0].graph.sha256 if known else sha256
    request = BlobRequest(sha256=wanted, offset=0, length=10)
    asked = threading.Event()

    def ask(_topic: str, payload: bytes) -> bytes:
        if payload[:1] != b"{" and not asked.is_set():  # it serves: it listens to requests
            asked.set()
            topic = topics.blob_topic(
                fleet.cluster, f"planner-{fleet.cluster}", f"asker-{fleet.cluster}"
            )
            answers.connection.publish(topic, request.model_dump_json().encode(), qos=0)
        return payload

    fleet.wire.alter = ask
    fleet.hand_out()
    eventually(lambda: answers.payloads("blob", parse_blob), "an answer")
    [answer] = answers.payloads("blob", parse_blob)
    assert isinstance(answer, BlobChunk) == known
    answers.close()


def test_batches_go_on_while_shards_are_handed_out(fleet: Fleet) -> None:
    for device in DEVICES:
        fleet.start(device)
    fleet.publish()
    next_plan = make_tiny_plan(
        fleet.folder / "built", seed=1, name="next", cluster=fleet.cluster, ballast_bytes=BALLAST
    )
    fleet.built = fleet.folder / "built" / "next"
    handing_out = threading.Thread(target=fleet.hand_out, args=(next_plan,))
    handing_out.start()
    fleet.runs(200)
    handing_out.join(timeout=30)
    assert not handing_out.is_alive()
    assert (fleet.folder / "pi-1" / "blobs" / next_plan.stages[1].weights.sha256).exists()


def test_a_request_that_nobody_waits_for_any_more_is_given_up(fleet: Fleet) -> None:
    fleet.start("pi-1")
    ghost = f"ghost-{fleet.cluster}"
    stage = fleet.plan.stages[1]
    fetch = Fetch(
        request_id="0" * 16,
        plan_id=fleet.plan.plan_id,
        stage_index=1,
        files=(stage.graph, stage.weights),
    )
    connection = fleet.connect(
        ConnectionSettings(name=ghost), Callbacks(on_delivery=lambda d: d.ack())
    )
    topic = topics.command_topic(fleet.cluster, "pi-1", ghost)
    connection.publish(topic, fetch.model_dump_json().encode()).result(timeout=5)
    connection.close(forget_session=True)
    for device in ("pi-0", "pi-2"):
        fleet.start(device)
    fleet.publish()  # pi-1 is free for a planner that does wait
    fleet.runs()


def test_a_planner_that_failed_once_does_not_spoil_the_next_publish(fleet: Fleet) -> None:
    """Refusals to an earlier fetch still wait at the device when the next one begins."""
    for device in DEVICES:
        fleet.start(device)
    refusal = BlobRefusal(sha256=fleet.plan.stages[1].weights.sha256, detail="stale file handle")

    def refuse(topic: str, payload: bytes) -> bytes:
        if topics.parse_topic(topic).kind == "blob" and payload[13:45].hex() == refusal.sha256:
            return refusal.model_dump_json().encode()
        return payload

    fleet.wire.alter = refuse
    with pytest.raises(ShardError, match=r"pi-1: .*stale file handle"):
        fleet.publish()
    fleet.wire.alter = lambda _topic, payload: payload
    fleet.publish()
    fleet.runs()


def test_of_two_planners_one_gets_its_way_and_the_other_is_told(fleet: Fleet) -> None:
    for device in DEVICES:
        fleet.start(device)
    started, errors = threading.Event(), list[Exception]()

    def slowly(_topic: str, payload: bytes) -> bytes:
        if payload[:1] != b"{":
            started.set()
            time.sleep(0.05)
        return payload

    fleet.wire.alter = slowly

    def first() -> None:
        try:
            fleet.hand_out()
        except ShardError as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(10)
    with Publisher(fleet.connect, fleet.cluster, f"second-{fleet.cluster}") as second:
        second.hand_out(fleet.plan, fleet.built, 20, lambda _what, _share: None)
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert ["now fetches for second-" in str(error) for error in errors] == [True]


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty manifest", "wrong bytes"])
def test_a_bad_copy_of_the_folder_does_not_keep_a_device_from_its_shard(
    fleet: Fleet, damage: str
) -> None:
    copied = fleet.folder / "copied"
    shutil.copytree(fleet.built / "stage-1", copied / "stage-1")
    weights = copied / "stage-1" / "weights.safetensors"
    if damage == "truncated":
        weights.write_bytes(b"1")
    elif damage == "missing":
        weights.unlink()
    elif damage == "empty manifest":
        (copied / "stage-1" / "manifest.json").write_bytes(b"")
    else:
        weights.write_bytes(bytes(weights.stat().st_size))
    fleet._start("pi-0", fleet.folder / "nothing", cache_dir=fleet.folder / "pi-0")
    fleet._start("pi-1", copied, cache_dir=fleet.folder / "pi-1")
    fleet._start("pi-2", fleet.folder / "nothing", cache_dir=fleet.folder / "pi-2")
    if damage == "wrong bytes":  # found out when it is loaded, and handed out the next time
        with pytest.raises(ShardError, match=r"pi-1: .*expected sha256"):
            fleet.publish()
    fleet.publish()
    fleet.runs()
