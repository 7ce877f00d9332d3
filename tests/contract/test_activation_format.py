"""The activation message, as it should be: golden bytes, round trips, readable by others."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.activation import (
    FORMAT,
    MAX_HEADER_BYTES,
    BatchId,
    Header,
    Hop,
    decode,
    encode,
)
from contract.errors import WireFormatError

HEADER = Header(
    plan_id="0123456789abcdef",
    batch_id=BatchId(0xDEADBEEF, 7),
    attempt=1,
    low=5,
    stage_index=1,
    route=("pi-0", "pi-1"),
    client="client-1",
    sent_us=1700000000000000,
    trace=(Hop(1, 2, 3, 4),),
    scalars=(("past", 5), ("sequence", 1)),
)

GOLDEN_HEADER = (
    b'{"__metadata__":{"checksum":"f3ca1569665a9d1e","format":"shardline/1",'
    b'"plan":"0123456789abcdef","epoch":"00000000deadbeef","seq":"7","attempt":"1","low":"5",'
    b'"stage":"1","route":"pi-0,pi-1","client":"client-1","codec":"float32",'
    b'"scalars":"past=5,sequence=1","sent_us":"1700000000000000","trace":"1,2,3,4"},'
    b'"x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    b'"y":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}'
)
GOLDEN = (
    bytes.fromhex("a001000000000000")
    + GOLDEN_HEADER
    + b"   "
    + bytes.fromhex("0000803f00000040")  # 1.0, 2.0, little-endian
    + bytes.fromhex("0102ff")
)
GOLDEN_TENSORS = {
    "x": np.array([[1.0, 2.0]], np.float32),
    "y": np.array([1, 2, 255], np.uint8),
}

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True).filter(
    lambda name: name != "pipeline"
)
counts = st.integers(0, 2**63 - 1)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    route = tuple(draw(st.lists(names, min_size=1, max_size=5)))
    stage_index = draw(st.integers(0, len(route)))
    micros = st.integers(0, 2**62)
    return Header(
        plan_id=draw(st.from_regex(r"[0-9a-f]{16}", fullmatch=True)),
        batch_id=BatchId(draw(st.integers(0, 2**64 - 1)), draw(counts)),
        attempt=draw(counts),
        low=draw(counts),
        stage_index=stage_index,
        route=route,
        client=draw(names),
        sent_us=draw(counts),
        trace=tuple(
            draw(st.lists(st.builds(Hop, micros, micros, micros, micros), max_size=stage_index))
        ),
    )


ALL_DTYPES = ["uint8", "int8", "int32", "int64", "float16", "float32", "float64", "bool"]
tensors = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(ALL_DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
        )
    ),
    max_size=4,
)


def test_the_bytes_of_a_message_are_frozen() -> None:
    assert encode(HEADER, GOLDEN_TENSORS) == GOLDEN


def test_the_golden_message_is_read_back() -> None:
    header, got = decode(GOLDEN)
    assert header == HEADER
    assert list(got) == ["x", "y"]
    for name, tensor in GOLDEN_TENSORS.items():
        assert got[name].dtype == tensor.dtype
        np.testing.assert_array_equal(got[name], tensor)


def test_the_checksum_stands_where_the_format_says() -> None:
    assert GOLDEN[8:37] == b'{"__metadata__":{"checksum":"'
    zeroed = GOLDEN[:37] + b"0" * 16 + GOLDEN[53:]
    assert xxhash.xxh3_64(zeroed).hexdigest().encode() == GOLDEN[37:53]


@given(headers(), tensors)
def test_what_is_encoded_is_decoded(header: Header, sent: dict[str, np.ndarray]) -> None:
    message = encode(header, sent)
    got_header, got = decode(message, max_bytes=len(message))
    assert got_header == header
    assert set(got) == set(sent)
    for name, tensor in sent.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert got[name].tobytes() == tensor.tobytes()  # bitwise: NaN too


@given(headers(), tensors)
def test_any_safetensors_reader_reads_a_message(
    header: Header, sent: dict[str, np.ndarray]
) -> None:
    got = safetensors.numpy.load(encode(header, sent))
    assert set(got) == set(sent)
    for name, tensor in sent.items():
        assert got[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda a: a.T, id="transposed"),
        pytest.param(lambda a: a[::2, ::-1], id="strided"),
        pytest.param(np.asfortranarray, id="fortran order"),
        pytest.param(lambda a: np.broadcast_to(a[:1], a.shape), id="broadcast"),
        pytest.param(lambda a: a[:0], id="empty batch"),
        pytest.param(lambda a: a[0, 0], id="scalar"),
    ],
)
def test_arrays_of_any_layout_travel(dtype: str, make: object) -> None:
    array = np.asarray(make(np.arange(12).reshape(4, 3).astype(dtype)))  # type: ignore[operator]
    got = decode(encode(HEADER, {"a": array})).tensors["a"]
    assert got.shape == array.shape
    np.testing.assert_array_equal(got, array)


def test_decoded_tensors_are_read_only_views_of_the_message() -> None:
    got = decode(GOLDEN).tensors["x"]
    assert not got.flags.writeable
    assert not got.flags.owndata


@pytest.mark.parametrize("dtype", ["complex64", "uint16", "object", "U3", "datetime64[s]"])
def test_a_dtype_that_the_format_lacks_is_refused_by_the_sender(dtype: str) -> None:
    with pytest.raises(WireFormatError, match="tensor `a`"):
        encode(HEADER, {"a": np.zeros(2, dtype)})


def test_a_big_endian_array_arrives_with_its_values_or_is_refused() -> None:
    array = np.array([1.0, 2.0], ">f4")
    try:
        message = encode(HEADER, {"a": array})
    except WireFormatError:
        return
    np.testing.assert_array_equal(decode(message).tensors["a"], array)


def test_tensors_begin_at_a_multiple_of_eight() -> None:
    for length in range(1, 20):
        message = encode(HEADER, {"n" * length: np.zeros(1, np.float64)})
        assert int.from_bytes(message[:8], "little") % 8 == 0


def test_a_message_of_the_largest_allowed_size_passes_and_one_byte_more_does_not() -> None:
    decode(GOLDEN, max_bytes=len(GOLDEN))
    with pytest.raises(WireFormatError, match="largest"):
        decode(GOLDEN, max_bytes=len(GOLDEN) - 1)


def test_the_header_limit_leaves_room_for_a_long_route() -> None:
    route = tuple(f"device-{i:03}-" + "x" * 50 for i in range(100))
    trace = tuple(Hop(*[1_700_000_000_000_000] * 4) for _ in route)
    header = replace(HEADER, route=route, stage_index=100, trace=trace)
    message = encode(header, GOLDEN_TENSORS)
    assert int.from_bytes(message[:8], "little") < MAX_HEADER_BYTES
    assert decode(message).header == header


def test_metadata_holds_exactly_the_documented_fields() -> None:
    document = json.loads(GOLDEN_HEADER)
    assert document["__metadata__"]["format"] == FORMAT
    assert list(document["__metadata__"]) == [
        "checksum",
        "format",
        "plan",
        "epoch",
        "seq",
        "attempt",
        "low",
        "stage",
        "route",
        "client",
        "codec",
        "scalars",
        "sent_us",
        "trace",
    ]
