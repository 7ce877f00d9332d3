"""Somebody holds the credentials of a device and tries all that a device should not do, while a
pipeline runs: each is refused by the broker or by whoever it is meant for, each leaves a trace, and
no batch is lost, wrong or given up.

What the broker refuses is in its log (at its most talkative); what the rights cannot forbid, since
it is sent in the device's own name, is rejected by the receiver, whose event an observer sees.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.activation import BatchId, encode
from contract.blob import BlobChunk, encode_chunk
from contract.clock import ClockAnswer, ClockRequest
from contract.command import Examine, Fetch, FetchProgress
from contract.nack import Nack, NackReason
from contract.plan import ShardFile
from contract.status import DeviceState, DeviceStatus, Event, EventKind, ShardState
from planner.publish import Publisher
from tests.conftest import eventually
from tests.pipeline.fakes import Run, make_batches, place_on
from tests.pipeline.hostile_site import (
    CLIENT,
    CLUSTER,
    HONEST,
    INSIDER,
    OBSERVER,
    OTHER_CLIENT,
    OUTSIDER,
    PLANNER,
    ROUTE,
    THIEF,
    HostileSite,
    Peer,
    guarded_broker,
    refused_in,
)
from tests.tiny import CLASSES, SIZES, make_tiny_plan

PLAN_ID = "0123456789abcdef"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileSite]:
    """One fleet and one run for all attacks: at its end every batch must have its one answer."""
    with guarded_broker(tmp_path_factory.mktemp("broker")) as ground:
        site = HostileSite(tmp_path_factory.mktemp("fleet"), ground)
        yield site
        site.close()


@pytest.fixture
def join(site: HostileSite) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def enter(user: str, client_id: str | None = None) -> Peer:
        peers.append(Peer(site.ground, user, client_id))
        return peers[-1]

    yield enter
    for peer in peers:
        peer.close()


def logits(images: int = 2) -> dict[str, np.ndarray]:
    return {"logits": np.full((images, CLASSES), 9.0, np.float32)}


def hidden(stage_index: int, images: int = 2) -> dict[str, np.ndarray]:
    """What stage ``stage_index`` takes, and nobody computed."""
    shape = (images, SIZES[stage_index])
    return {f"hidden_{stage_index - 1}": np.full(shape, 9.0, np.float32)}


def status_of(device: str, **changes: object) -> bytes:
    status = DeviceStatus(device=device, state=DeviceState.OFFLINE, boot=1)
    return status.model_copy(update=changes).model_dump_json().encode()


def nack_of(site: HostileSite, seq: int, **changes: object) -> bytes:
    nack = Nack(
        plan_id=site.plan.plan_id,
        epoch=f"{site.header(1).batch_id.epoch:016x}",
        seq=seq,
        attempt=0,
        stage_index=1,
        route=ROUTE,
        device=OUTSIDER,
        reason=NackReason.ENGINE_FAILED,
        detail="forged",
    )
    return nack.model_copy(update=changes).model_dump_json().encode()


FORBIDDEN: dict[str, tuple[str, str]] = {
    "an input of another sender": (
        OUTSIDER,
        topics.input_topic(CLUSTER, "pi-1", PLAN_ID, 1, "pi-0"),
    ),
    "an input of a client": (OUTSIDER, topics.input_topic(CLUSTER, "pi-0", PLAN_ID, 0, CLIENT)),
    "an input of the first stage": (
        OUTSIDER,
        topics.input_topic(CLUSTER, "pi-0", PLAN_ID, 0, OUTSIDER),
    ),
    "a client's input of a later stage": (
        OTHER_CLIENT,
        topics.input_topic(CLUSTER, "pi-1", PLAN_ID, 1, OTHER_CLIENT),
    ),
    "a result of another": (OUTSIDER, topics.result_topic(CLUSTER, CLIENT, "pi-2")),
    "a result by another client": (
        OTHER_CLIENT,
        topics.result_topic(CLUSTER, CLIENT, OTHER_CLIENT),
    ),
    "a refusal of another": (OUTSIDER, topics.nack_topic(CLUSTER, CLIENT, "pi-1")),
    "a status of another": (OUTSIDER, topics.status_topic(CLUSTER, "pi-1")),
    "metrics of another": (OUTSIDER, topics.metrics_topic(CLUSTER, "pi-1")),
    "metrics of a client": (OUTSIDER, topics.pipeline_metrics_topic(CLUSTER, CLIENT)),
    "a trace": (OUTSIDER, topics.trace_topic(CLUSTER, CLIENT)),
    "a trace of its own": (OUTSIDER, topics.trace_topic(CLUSTER, OUTSIDER)),
    "the time of another": (OUTSIDER, topics.clock_topic(CLUSTER, CLIENT, "pi-1")),
    "an event of another": (OUTSIDER, topics.event_topic(CLUSTER, "pi-1")),
    "a plan": (OUTSIDER, topics.plan_topic(CLUSTER)),
    "a client's plan": (OTHER_CLIENT, topics.plan_topic(CLUSTER)),
    "a command": (OUTSIDER, topics.command_topic(CLUSTER, "pi-1", OUTSIDER)),
    "a command of the planner": (OUTSIDER, topics.command_topic(CLUSTER, "pi-1", PLANNER)),
    "a client's command": (OTHER_CLIENT, topics.command_topic(CLUSTER, "pi-1", OTHER_CLIENT)),
    "an answer of another": (OUTSIDER, topics.answer_topic(CLUSTER, PLANNER, "pi-1")),
    "a piece of a shard by the planner": (OUTSIDER, topics.blob_topic(CLUSTER, "pi-1", PLANNER)),
    "anything of another cluster": (OUTSIDER, topics.status_topic("away", OUTSIDER)),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_not_in_its_own_name_the_broker_refuses(
    site: HostileSite, join: Callable[..., Peer], what: str
) -> None:
    user, topic = FORBIDDEN[what]
    peer = join(user)
    assert not peer.may(topic, b"forged")
    assert not peer.may(topic, b"forged", retain=True)
    eventually(lambda: refused_in(site.ground.log(), user, topic), "the broker's log has it")
    site.traffic.goes_on(10)


def test_a_plan_cannot_be_retired_by_a_device(site: HostileSite, join: Callable[..., Peer]) -> None:
    assert not join(OUTSIDER).may(topics.plan_topic(CLUSTER), b"", retain=True)
    site.traffic.goes_on()


def test_it_reads_nothing_but_its_own_whatever_it_subscribes_to(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    peer = join(OUTSIDER)
    inputs = topics.input_filter(CLUSTER, "pi-1")
    results = topics.result_filter(CLUSTER, CLIENT)
    everything = ("#", "+/#", f"{topics.ROOT}/#", "$SYS/#")
    shared = tuple(f"$share/thieves/{f}" for f in (inputs, results, "#"))
    for topic_filter in (*everything, inputs, results, *shared):
        peer.connection.subscribe(topic_filter)
    plan = topics.plan_topic(CLUSTER)
    eventually(lambda: any(d.topic == plan for d in peer.heard), "the retained plan")
    site.traffic.goes_on(200)
    assert {delivery.topic for delivery in peer.heard} == {plan}


def test_it_cannot_take_the_place_of_another(site: HostileSite, join: Callable[..., Peer]) -> None:
    thief = join(THIEF, client_id="pi-1")
    thief.connection.subscribe(topics.input_filter(CLUSTER, "pi-1"))
    site.traffic.goes_on(100)
    assert thief.heard == []
    assert "Client pi-1 already connected" not in site.ground.log()


def test_a_valid_looking_input_from_who_is_not_on_the_route_is_rejected(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    peer = join(OUTSIDER)
    for index, device in ((1, "pi-1"), (2, "pi-2")):
        topic = topics.input_topic(CLUSTER, device, site.plan.plan_id, index, OUTSIDER)
        assert peer.may(topic, encode(site.header(index), hidden(index)))
        site.told(device, f"expected it from pi-{index - 1}, got it from {OUTSIDER}")
    site.traffic.goes_on()


def test_an_input_by_a_route_through_itself_is_refused_and_the_refusal_counts_nowhere(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    """It names itself as the device before, and a batch of the client that is on its way."""
    peer = join(OUTSIDER)
    topic = topics.input_topic(CLUSTER, "pi-1", site.plan.plan_id, 1, OUTSIDER)
    route = (OUTSIDER, *ROUTE[1:])
    before = site.rejected()
    epoch = site.header(1).batch_id.epoch
    for _ in range(10):
        for seq in range(site.newest() - 3, site.newest() + 6):
            forged = site.header(1, route=route, batch_id=BatchId(epoch, seq))
            peer.connection.publish(topic, encode(forged, hidden(1)))
        site.traffic.goes_on(5)
    site.told("pi-1", f"{OUTSIDER} does not serve stage 0")
    eventually(lambda: site.rejected() > before, "the client rejects the refusal", 60)
    site.traffic.goes_on()


def test_a_replica_cannot_answer_for_batches_that_went_to_another(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    """It serves stage 1 by the plan, so stage 2 takes what it sends; the client does not."""
    peer = join(INSIDER)
    topic = topics.input_topic(CLUSTER, "pi-2", site.plan.plan_id, 2, INSIDER)
    route = ("pi-0", INSIDER, "pi-2")
    before = site.rejected()
    for turn in range(10):
        newest, epoch = site.newest(), site.header(2).batch_id.epoch
        # Far ahead at first; then those in flight alone, or the event would tell of the others.
        for seq in range(newest - 2, newest + (30 if turn == 0 else 4)):
            forged = site.header(2, route=route, batch_id=BatchId(epoch, seq))
            peer.connection.publish(topic, encode(forged, hidden(2)))
        site.traffic.goes_on(10)
    eventually(lambda: site.rejected() > before, "the client rejects what came of it", 60)
    site.told(CLIENT, "this message claims")
    site.traffic.goes_on()


def test_a_replica_cannot_have_batches_of_another_refused_or_taken_for_stale(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    """Rubbish under their numbers, and a watermark far above them."""
    peer = join(INSIDER)
    topic = topics.input_topic(CLUSTER, "pi-2", site.plan.plan_id, 2, INSIDER)
    route = ("pi-0", INSIDER, "pi-2")
    epoch = site.header(2).batch_id.epoch
    before = site.rejected()
    for _ in range(10):
        newest = site.newest()
        for seq in range(newest - 2, newest + 10):
            rubbish = site.header(2, route=route, batch_id=BatchId(epoch, seq))
            peer.connection.publish(topic, encode(rubbish, {"rubbish": np.zeros(3, np.float32)}))
        far = site.header(2, route=route, batch_id=BatchId(epoch, 2**62), low=2**62)
        peer.connection.publish(topic, encode(far, hidden(2)))
        site.traffic.goes_on(10)
    eventually(lambda: site.rejected() > before, "the client rejects the refusals", 60)
    site.traffic.goes_on()


def test_forged_results_in_its_own_name_are_rejected(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    for user in (OUTSIDER, INSIDER):
        peer = join(user)
        topic = topics.result_topic(CLUSTER, CLIENT, user)
        before = site.rejected()
        for route in (ROUTE, (*ROUTE[:2], user)):
            assert peer.may(topic, encode(site.header(3, route=route), logits()))
        eventually(lambda n=before: site.rejected() >= n + 2, "the client rejects both")
        site.told(CLIENT, f"{user} does not serve the last stage")
    site.traffic.goes_on()


def test_forged_refusals_in_its_own_name_kill_no_batch(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    peer = join(OUTSIDER)
    topic = topics.nack_topic(CLUSTER, CLIENT, OUTSIDER)
    before = site.rejected()
    site.traffic.goes_on(5)

    def refuse() -> bool:
        for seq in range(site.newest() - 3, site.newest() + 3):
            for device in (OUTSIDER, "pi-1"):
                assert peer.may(topic, nack_of(site, seq, device=device))
        return site.rejected() > before

    for _ in range(5):
        refuse()
    eventually(refuse, "the client rejects those of batches in flight", 60)
    site.traffic.goes_on()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[" * 60_000, id="deep JSON"),
        pytest.param(b'{"boot":' + b"9" * 60_000 + b"}", id="a number without end"),
        pytest.param(b" " * 100_000, id="too long"),
        pytest.param(status_of("pi-1"), id="of another"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
    ],
)
def test_a_status_of_nonsense_ends_nobody(
    site: HostileSite, join: Callable[..., Peer], payload: bytes
) -> None:
    peer, topic = join(OUTSIDER), topics.status_topic(CLUSTER, OUTSIDER)
    assert peer.may(topic, payload, retain=True)
    site.traffic.goes_on()
    assert peer.may(topic, b"", retain=True)


def test_what_it_says_of_itself_cannot_write_on_a_terminal(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    """It serves a stage of a plan, so what it cannot load is told to whoever publishes."""
    evil = "\x1b[2J\x1b]0;owned\x07\r\nall is well \x9b31m[red]x[/]\u202e"
    status = json.loads(status_of(INSIDER, state=DeviceState.ONLINE, shard=ShardState.FAILED))
    status |= {"plan_id": site.plan.plan_id, "stage_index": 1, "error": evil}
    peer = join(INSIDER)
    topic = topics.status_topic(CLUSTER, INSIDER)
    with Publisher(site.ground.connector(PLANNER), CLUSTER, PLANNER) as publisher:
        assert peer.may(topic, json.dumps(status).encode(), retain=True)
        eventually(
            lambda: publisher.listen() or publisher._fleet.get(INSIDER) is not None, "it is heard"
        )
        failure = publisher._fleet.failure(site.plan)
    assert failure is not None
    assert failure.isprintable()
    assert "all is well" in failure
    assert peer.may(topic, b"", retain=True)
    site.traffic.goes_on()


def test_what_it_leaves_behind_retained_is_rejected_by_who_comes_later(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    peer = join(OUTSIDER)
    left = [
        topics.result_topic(CLUSTER, OTHER_CLIENT, OUTSIDER),
        topics.nack_topic(CLUSTER, OTHER_CLIENT, OUTSIDER),
    ]
    for topic in left:
        assert peer.may(topic, encode(site.header(3), logits()), retain=True)
    settings = ClientSettings(name=OTHER_CLIENT, cluster=CLUSTER, ready_timeout_s=20)
    with Pipeline(settings, site.ground.connector(OTHER_CLIENT)) as pipeline:
        pipeline.open()
        Run(pipeline, make_batches(10)).go().keeps_the_promise()
        assert pipeline.rejected == len(left)
    for topic in left:
        assert peer.may(topic, b"", retain=True)
    site.traffic.goes_on()


@pytest.mark.parametrize("qos", [0, 1])
def test_a_flood_delays_batches_and_loses_none(
    site: HostileSite, join: Callable[..., Peer], qos: int
) -> None:
    peer = join(OUTSIDER)
    rubbish = b"\0" * 2000
    for topic in (
        topics.input_topic(CLUSTER, "pi-1", site.plan.plan_id, 1, OUTSIDER),
        topics.blob_topic(CLUSTER, "pi-1", OUTSIDER),
        topics.result_topic(CLUSTER, CLIENT, OUTSIDER),
        topics.nack_topic(CLUSTER, CLIENT, OUTSIDER),
        topics.clock_topic(CLUSTER, CLIENT, OUTSIDER),
        topics.clock_topic(CLUSTER, "pi-1", OUTSIDER),
    ):
        peer.flood(topic, rubbish, 400, qos)
    site.traffic.goes_on(100)


def test_it_tells_no_client_the_time_unless_asked_and_asks_a_device_no_oftener_than_it_answers(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    """A replica of the plan is asked, and lies: it moves its own clock and no other."""
    clocks = site.traffic.pipeline.tracer._clocks
    eventually(
        lambda: site.traffic.goes_on(5) or len(clocks.offsets()) == len(HONEST),
        "the honest devices have answered",
    )
    right = {offset.device: offset.offset_us for offset in clocks.offsets()}
    assert set(right) == set(HONEST)
    far = ClockAnswer(number=1, received_us=2**63 - 1, sent_us=2**63 - 1).model_dump_json()
    before = site.rejected()
    peers = {user: join(user) for user in (OUTSIDER, INSIDER)}
    for user, peer in peers.items():
        for payload in (far.encode(), b"[" * 500, b"x" * 600):
            peer.flood(topics.clock_topic(CLUSTER, CLIENT, user), payload, 50)
    site.traffic.goes_on()
    eventually(lambda: site.rejected() > before, "the client rejects what it has not asked for")
    for offset in clocks.offsets():
        assert offset.device in HONEST
        assert abs(offset.offset_us - right[offset.device]) < 1_000_000
    question = ClockRequest(number=1).model_dump_json().encode()
    peers[OUTSIDER].flood(topics.clock_topic(CLUSTER, "pi-1", OUTSIDER), question, 400)
    site.told("pi-1", "in a second")
    site.traffic.goes_on()


def test_a_message_larger_than_the_plan_s_is_not_even_queued(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    peer = join(OUTSIDER)
    topic = topics.input_topic(CLUSTER, "pi-1", site.plan.plan_id, 1, OUTSIDER)
    assert peer.may(topic, bytes(8_000_000))
    site.told("pi-1", "8,000,000 bytes: expected at most")
    before = site.rejected()
    assert peer.may(topics.result_topic(CLUSTER, CLIENT, OUTSIDER), bytes(8_000_000))
    eventually(lambda: site.rejected() > before, "the client drops it")
    site.told(CLIENT, "too large")
    site.traffic.goes_on()


def test_pieces_and_answers_of_a_stranger_do_not_get_into_a_shard(
    site: HostileSite, join: Callable[..., Peer]
) -> None:
    """Another plan is handed out to a device while it is flooded with well-formed pieces."""
    peer = join(OUTSIDER)
    other = make_tiny_plan(site.folder / "other", seed=1, name="other", ballast_bytes=2_000_000)
    placed = place_on(other, list(HONEST), CLUSTER)
    weights = placed.stages[1].weights
    chunk = encode_chunk(BlobChunk(weights.sha256, 0, bytes(131_072)))
    lie = FetchProgress(request_id="0" * 16, done_bytes=0, total_bytes=1, error="no disk")
    ended = threading.Event()

    def interfere() -> None:
        while not ended.is_set():
            peer.connection.publish(topics.blob_topic(CLUSTER, "pi-1", OUTSIDER), chunk, qos=0)
            answer = topics.answer_topic(CLUSTER, PLANNER, OUTSIDER)
            peer.connection.publish(answer, lie.model_dump_json().encode())
            time.sleep(0.002)

    thread = threading.Thread(target=interfere)
    thread.start()
    try:
        with Publisher(site.ground.connector(PLANNER), CLUSTER, PLANNER) as publisher:
            publisher.hand_out(placed, site.folder / "other" / "other", 30, lambda *_: None)
    finally:
        ended.set()
        thread.join()
    cached = site.folder / "cache-pi-1" / "blobs" / weights.sha256
    assert cached.stat().st_size == weights.size_bytes
    site.told("pi-1", f"expected it from {PLANNER}, got it from {OUTSIDER}")
    site.traffic.goes_on()


@pytest.mark.parametrize(
    "command",
    [
        Examine(request_id="a" * 16),
        Fetch(
            request_id="b" * 16,
            plan_id=PLAN_ID,
            stage_index=0,
            files=(ShardFile(sha256="ab" * 32, size_bytes=10),),
        ),
    ],
    ids=lambda command: command.kind,
)
def test_a_device_works_for_no_other(
    site: HostileSite, join: Callable[..., Peer], command: Examine | Fetch
) -> None:
    peer = join(OUTSIDER)
    peer.connection.subscribe(topics.answer_filter(CLUSTER, OUTSIDER))
    payload = command.model_dump_json().encode()
    assert not peer.may(topics.command_topic(CLUSTER, "pi-1", OUTSIDER), payload)
    site.traffic.goes_on(20)
    assert peer.heard == []


def test_the_observer_of_these_tests_hears_events_and_can_say_nothing(
    site: HostileSite, tmp_path: Path
) -> None:
    """The control: what was told above was told by events of honest processes."""
    assert not site.observer.may(topics.event_topic(CLUSTER, OBSERVER))
    kinds = {Event.model_validate_json(d.payload).kind for d in site.observer.heard}
    assert EventKind.MESSAGE_REJECTED in kinds
