"""Shard pieces and commands on the wire: golden bytes, round trips, and everything malformed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.blob import (
    HEADER_BYTES,
    MAX_CHUNK_BYTES,
    BlobChunk,
    BlobRefusal,
    BlobRequest,
    encode_chunk,
    parse_blob,
)
from contract.command import Examine, Fetch, FetchProgress, parse_command
from contract.errors import WireFormatError
from contract.plan import ShardFile

SHA = "ab" * 32


def test_a_chunk_is_these_bytes() -> None:
    message = encode_chunk(BlobChunk(SHA, 7, b"shard!"))
    assert message[:5] == b"SLB1\x01"
    assert message[5:13].hex() == "1fbe13c5e26d6b54"
    assert message[13:] == bytes.fromhex("ab" * 32 + "0700000000000000") + b"shard!"
    assert HEADER_BYTES == 53


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**63), st.binary(min_size=1))
def test_a_chunk_comes_back_as_it_was(digest: bytes, offset: int, data: bytes) -> None:
    chunk = parse_blob(encode_chunk(BlobChunk(digest.hex(), offset, data)))
    assert isinstance(chunk, BlobChunk)
    assert (chunk.sha256, chunk.offset, bytes(chunk.data)) == (digest.hex(), offset, data)
    assert chunk.end == offset + len(data)


@pytest.mark.parametrize("bit", range(0, 8 * (HEADER_BYTES + 6)))
def test_every_flipped_bit_of_a_chunk_is_noticed(bit: int) -> None:
    message = bytearray(encode_chunk(BlobChunk(SHA, 7, b"shard!")))
    message[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireFormatError):
        parse_blob(bytes(message))


def test_a_truncated_an_oversized_and_a_foreign_message_are_refused() -> None:
    whole = encode_chunk(BlobChunk(SHA, 0, bytes(100)))
    for length in (0, 1, 12, HEADER_BYTES, len(whole) - 1):
        with pytest.raises(WireFormatError):
            parse_blob(whole[:length])
    with pytest.raises(WireFormatError, match="at most"):
        parse_blob(whole + bytes(MAX_CHUNK_BYTES))
    with pytest.raises(WireFormatError, match="not a chunk"):
        parse_blob(b"GET / HTTP/1.1\r\n" * 10)


def test_a_request_and_a_refusal_come_back_as_they_were() -> None:
    for message in (
        BlobRequest(sha256=SHA, offset=5, length=10),
        BlobRefusal(sha256=SHA, detail="no such file"),
    ):
        assert parse_blob(message.model_dump_json().encode()) == message


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "../../etc/passwd"},
        {"sha256": "AB" * 32},
        {"offset": -1},
        {"offset": "0"},
        {"length": 0},
        {"length": MAX_CHUNK_BYTES + 1},
        {"kind": "push"},
        {"format_version": 2},
        {"more": 1},
    ],
)
def test_a_request_with_anything_wrong_is_refused(change: dict[str, object]) -> None:
    good = {"kind": "request", "format_version": 1, "sha256": SHA, "offset": 0, "length": 1}
    assert parse_blob(json.dumps(good).encode())
    with pytest.raises(WireFormatError):
        parse_blob(json.dumps({**good, **change}).encode())


def test_commands_and_their_answers_come_back_as_they_were() -> None:
    file = ShardFile(sha256=SHA, size_bytes=12)
    for message in (
        Fetch(request_id="0" * 16, plan_id="1" * 16, stage_index=2, files=(file,)),
        FetchProgress(request_id="0" * 16, done_bytes=1, total_bytes=12),
        FetchProgress(request_id="0" * 16, done_bytes=0, total_bytes=12, error="disk full"),
        Examine(request_id="f" * 16),
    ):
        assert parse_command(message.model_dump_json().encode()) == message


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"kind":"reboot"}',
        b'{"kind":"examine","format_version":1,"request_id":"../x"}',
        b'{"kind":"fetch","format_version":1,"request_id":"0000000000000000",'
        b'"plan_id":"0000000000000000","stage_index":0,"files":[]}',
        b" " * 70_000,
    ],
)
def test_what_is_no_command_is_refused(payload: bytes) -> None:
    with pytest.raises(WireFormatError):
        parse_command(payload)
