"""Devices that ask for too much, or tell of too much, are made to wait or are not believed."""

import hashlib
from concurrent.futures import Future
from pathlib import Path

import pytest

import planner.chunks
from broker.transport import PublishOutcome
from contract.blob import BlobChunk, BlobRefusal, BlobRequest, parse_blob
from contract.command import FetchProgress
from contract.errors import MessageTooLargeError
from planner.chunks import MAX_UNSENT, ChunkSender
from planner.handout import HandOut
from shards.source import ShardSource
from tests.tiny import make_tiny_plan

DATA = b"shard" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


class SlowWire:
    """A connection that has never written anything yet, and a broker that takes 2,000 bytes."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.futures: list[Future[PublishOutcome]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1) -> "Future[PublishOutcome]":
        if len(payload) > 2000:
            raise MessageTooLargeError(topic, len(payload), 2000)
        self.payloads.append(payload)
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def wire() -> SlowWire:
    return SlowWire()


@pytest.fixture
def sender(wire: SlowWire, tmp_path: Path) -> ChunkSender:
    (tmp_path / "file").write_bytes(DATA)
    sender = ChunkSender(wire, "home", "planner")  # type: ignore[arg-type]
    sender.source = ShardSource({SHA: tmp_path / "file"})
    return sender


def test_a_device_that_asks_faster_than_its_link_carries_fills_no_memory(
    wire: SlowWire, sender: ChunkSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner.chunks, "UNSENT_PATIENCE_S", 0.001)
    for _ in range(100):
        sender.serve(BlobRequest(sha256=SHA, offset=0, length=100), "pi-0")
        assert len(sender._unsent) <= MAX_UNSENT
    assert isinstance(parse_blob(wire.payloads[-1]), BlobChunk)


def test_a_piece_that_the_broker_does_not_take_is_refused_and_nobody_else_suffers(
    wire: SlowWire, sender: ChunkSender
) -> None:
    sender.serve(BlobRequest(sha256=SHA, offset=0, length=4000), "pi-0")
    refusal = parse_blob(wire.payloads[0])
    assert isinstance(refusal, BlobRefusal)
    assert "the broker accepts 2,000" in refusal.detail
    sender.serve(BlobRequest(sha256=SHA, offset=0, length=100), "pi-1")
    assert isinstance(parse_blob(wire.payloads[1]), BlobChunk)


def test_the_largest_offset_that_can_be_asked_for_is_refused(
    wire: SlowWire, sender: ChunkSender
) -> None:
    sender.serve(BlobRequest(sha256=SHA, offset=2**63 - 1, length=1), "pi-0")
    assert isinstance(parse_blob(wire.payloads[0]), BlobRefusal)


def test_a_device_that_has_more_than_there_is_gets_nowhere(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path)
    work = HandOut(plan, 0.0)
    fetch = work.fetches["pi-0"]
    total = sum(file.size_bytes for file in fetch.files)
    for done in (total + 1, 2**62):
        told = FetchProgress(request_id=fetch.request_id, done_bytes=done, total_bytes=1)
        work.take("pi-0", told, 5.0)
    assert work.share("pi-0") == 0.0
    assert "pi-0" in work.stuck(10.0, 6.0)
    told = FetchProgress(request_id=fetch.request_id, done_bytes=total, total_bytes=1)
    work.take("pi-0", told, 5.0)
    assert work.share("pi-0") == 1.0
