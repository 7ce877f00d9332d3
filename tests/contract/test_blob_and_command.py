"""Shard pieces and commands on the wire: golden bytes, round trips, and everything malformed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.blob import (
    HEADER_BYTES,
    MAX_CHUNK_BYTES,
    BlobChunk,
    BlobRefusal,
    BlobRequest,
    encode_chunk,
    parse_blob,
)
from contract.command import (
    MAX_COMMAND_BYTES,
    MAX_KERNELS,
    MAX_WEIGHTS,
    Examine,
    Fetch,
    FetchProgress,
    GeneratedWeight,
    LinkProbe,
    Measure,
    Measured,
    Measuring,
    ProbeLink,
    Timings,
    parse_command,
)
from contract.errors import WireFormatError
from contract.plan import ShardFile
from contract.tensor_spec import TensorSpec

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


TIMINGS = Timings(
    whole_ms=1.5,
    kernels=(("relu_1_nchwc", 0.5), ("linear", 1.0)),
    unpacked_whole_ms=None,
    base_bytes=70,
    load_peak_bytes=90,
    peak_bytes=100,
    unpacked_peak_bytes=None,
    sustained_share=0.9,
)


def measure(**change: object) -> Measure:
    good: dict[str, object] = {
        "request_id": "0" * 16,
        "graph": ShardFile(sha256=SHA, size_bytes=12),
        "weights_size_bytes": 100,
        "weights": (GeneratedWeight(offset=0, length=100, dtype="float32", scale=0.1),),
        "inputs": (TensorSpec(name="x", dtype="uint8", shape=("batch", 3)),),
        "batch_size": 1,
        "budget_s": 1.0,
        "sustained_s": 0.0,
    }
    return Measure.model_validate({**good, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"weights_size_bytes": 99},
        {"batch_size": 0},
        {"batch_size": 5000},
        {"budget_s": 0},
        {"budget_s": float("nan")},
        {"sustained_s": -1.0},
        {"sustained_s": 1e9},
        {"inputs": ()},
        {"weights": (GeneratedWeight(offset=0, length=1, dtype="float32", scale=1.0),) * 2001},
    ],
)
def test_a_measurement_out_of_bounds_cannot_be_asked_for(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        measure(**change)


def test_the_largest_measurement_fits_into_a_command() -> None:
    weight = GeneratedWeight(
        offset=9_999_999_999, length=999_999_999, dtype="float32", scale=0.123456
    )
    largest = measure(weights=(weight,) * MAX_WEIGHTS, weights_size_bytes=2_000_000_000_000)
    assert len(largest.model_dump_json()) < MAX_COMMAND_BYTES
    kernels = (("a_name_of_a_tensor_as_long_as_such_names_are_at_most", 12345.6789),) * MAX_KERNELS
    timings = TIMINGS.model_copy(update={"kernels": kernels})
    assert len(Measured(request_id="0" * 16, timings=timings).model_dump_json()) < MAX_COMMAND_BYTES


def test_an_answer_without_times_and_without_error_is_none() -> None:
    for fields in ({}, {"timings": TIMINGS, "error": "both"}):
        with pytest.raises(ValidationError):
            Measured(request_id="0" * 16, **fields)  # type: ignore[arg-type]


def test_commands_and_their_answers_come_back_as_they_were() -> None:
    file = ShardFile(sha256=SHA, size_bytes=12)
    for message in (
        Fetch(request_id="0" * 16, plan_id="1" * 16, stage_index=2, files=(file,)),
        FetchProgress(request_id="0" * 16, done_bytes=1, total_bytes=12),
        FetchProgress(request_id="0" * 16, done_bytes=0, total_bytes=12, error="disk full"),
        Examine(request_id="f" * 16),
        measure(),
        Measuring(request_id="0" * 16, step="weights prepacked"),
        Measured(request_id="0" * 16, error="no room", busy=True, throttled=5),
        Measured(request_id="0" * 16, timings=TIMINGS),
        ProbeLink(request_id="0" * 16, only_through=True),
        LinkProbe(request_id="0" * 16, up_bytes_per_s=1e6, latency_ms=0.25),
        LinkProbe(request_id="0" * 16, error="the broker is away"),
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
        b" " * (MAX_COMMAND_BYTES + 1),
    ],
)
def test_what_is_no_command_is_refused(payload: bytes) -> None:
    with pytest.raises(WireFormatError):
        parse_command(payload)
