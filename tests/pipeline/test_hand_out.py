"""Shards reach the devices over the broker: whole, resumed, verified, beside running batches."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from broker.connection import connector
from broker.embedded import EmbeddedBroker
from broker.transport import Callbacks, Connect, Connection, ConnectionSettings, PublishOutcome
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.blob import BlobChunk, BlobRefusal, BlobRequest, encode_chunk, parse_blob
from contract.command import Fetch
from contract.errors import DeliveryError, ShardError, ShardMissingError
from contract.plan import Plan
from contract.status import Event, EventKind
from planner.publish import Publisher
from tests.conftest import StartStage, eventually
from tests.pipeline.fakes import make_batches
from tests.stage.harness import Listener
from tests.tiny import make_tiny_plan

DEVICES = ("pi-0", "pi-1", "pi-2")
BALLAST = 3_000_000


class Wire:
    """Sees every message that one process publishes, and may hold, alter or lose it."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.alter: Callable[[str, bytes], bytes | None] = lambda _topic, payload: payload
        self.blob_bytes = 0
        self.chunks: list[tuple[str, BlobChunk]] = []

    def connect(self, settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        inner, wire = self._connect(settings, callbacks), self

        class Watched:
            def publish(
                self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
            ) -> Future[PublishOutcome]:
                if topics.parse_topic(topic).kind == "blob" and payload[:1] != b"{":
                    wire.blob_bytes += len(payload)
                    chunk = parse_blob(payload)
                    assert isinstance(chunk, BlobChunk)
                    wire.chunks.append((topic, chunk))
                altered = wire.alter(topic, payload)
                if altered is None:
                    future: Future[PublishOutcome] = Future()
                    future.set_result(PublishOutcome.ACCEPTED)
                    return future
                return inner.publish(topic, altered, qos=qos, retain=retain)

            def __getattr__(self, name: str) -> object:
                return getattr(inner, name)

        return Watched()  # type: ignore[return-value]


class Fleet:
    """Three devices with empty disks, and a planner whose wire is watched."""

    def __init__(
        self, folder: Path, cluster: str, start_stage: StartStage, connect: Connect
    ) -> None:
        self.folder, self.cluster, self.connect = folder, cluster, connect
        self.plan = make_tiny_plan(folder / "built", cluster=cluster, ballast_bytes=BALLAST)
        self.built = folder / "built" / self.plan.name
        self.wire = Wire(connect)
        self._start = start_stage
        # Devices keep their names between tests, and the broker is shared: the names are unique.
        self.observer = Listener(connect, f"seer-{cluster}", topics.event_filter(cluster))

    def start(self, device: str, **settings: object) -> object:
        settings.setdefault("cache_dir", self.folder / device)
        return self._start(device, self.folder / "nothing", **settings)

    def hand_out(self, plan: Plan | None = None, patience_s: float = 20.0) -> list[float]:
        shares: list[float] = []
        with Publisher(self.wire.connect, self.cluster, f"planner-{self.cluster}") as publisher:
            publisher.hand_out(
                plan or self.plan, self.built, patience_s, lambda _what, share: shares.append(share)
            )
        return shares

    def publish(self, patience_s: float = 20.0) -> None:
        with Publisher(self.wire.connect, self.cluster, f"planner-{self.cluster}") as publisher:
            publisher.hand_out(self.plan, self.built, patience_s, lambda _what, _share: None)
            publisher.publish(self.plan)
            publisher.wait_until_ready(self.plan, patience_s, lambda _what, _share: None)

    def runs(self, count: int = 10) -> None:
        settings = ClientSettings(name=f"client-{self.cluster}", cluster=self.cluster)
        with Pipeline(settings, self.connect) as pipeline:
            pipeline.open()
            assert len(list(pipeline.run(make_batches(count)))) == count
            assert pipeline.counts(finished=True).delivered == count

    def events(self, kind: EventKind) -> list[str]:
        events = self.observer.payloads("event", Event.model_validate_json)
        return [event.detail for event in events if event.kind is kind]

    def weights_in_cache(self, device: str, index: int) -> bool:
        blob = self.folder / device / "blobs" / self.plan.stages[index].weights.sha256
        return blob.exists()


@pytest.fixture
def fleet(
    tmp_path: Path, cluster: str, start_stage: StartStage, connect: Connect
) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, cluster, start_stage, connect)
    yield fleet
    fleet.observer.close()


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


def sizes(plan: Plan, index: int) -> int:
    return plan.stages[index].graph.size_bytes + plan.stages[index].weights.size_bytes


def test_devices_with_empty_disks_get_their_shards_and_serve_them(fleet: Fleet) -> None:
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
    connect = connector(own_broker.address)
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
