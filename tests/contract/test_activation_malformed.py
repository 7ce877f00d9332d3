"""Whatever arrives that is not a message of ours is refused, with WireFormatError and nothing else.

The checksum guards against accidents, not against a sender that lies: most messages here have a
correct checksum over a header that is wrong.
"""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.activation import MAX_HEADER_BYTES, MAX_TENSORS, decode
from contract.errors import WireFormatError
from tests.contract.test_activation_format import GOLDEN, GOLDEN_HEADER

DATA = GOLDEN[8 + int.from_bytes(GOLDEN[:8], "little") :]


def sealed(header: bytes, data: bytes = DATA) -> bytes:
    """A message of this header text, with the checksum that fits it."""
    header += b" " * (-len(header) % 8)
    message = bytearray(len(header).to_bytes(8, "little") + header + data)
    if len(message) >= 53:
        message[37:53] = b"0" * 16
        message[37:53] = xxhash.xxh3_64(message).hexdigest().encode()
    return bytes(message)


def document() -> dict[str, Any]:
    return json.loads(GOLDEN_HEADER)


def with_metadata(**changes: object) -> bytes:
    changed = document()
    changed["__metadata__"].update(changes)
    return sealed(json.dumps(changed, separators=(",", ":")).encode())


def with_tensor(entry: object, data: bytes = DATA, name: str = "x") -> bytes:
    changed = {"__metadata__": document()["__metadata__"], name: entry}
    return sealed(json.dumps(changed, separators=(",", ":")).encode(), data)


def refused(payload: bytes, match: str = ".", max_bytes: int | None = None) -> None:
    with pytest.raises(WireFormatError, match=match):
        decode(payload, max_bytes)


def test_resealing_the_golden_header_gives_the_golden_message() -> None:
    """The control of this file: its forgeries fail for what they say, not for how they are made."""
    assert sealed(GOLDEN_HEADER) == GOLDEN
    assert with_metadata() == GOLDEN


def test_every_truncation_is_refused() -> None:
    for length in range(len(GOLDEN)):
        refused(GOLDEN[:length])


def test_every_single_flipped_bit_is_refused() -> None:
    for position in range(len(GOLDEN)):
        for bit in range(8):
            altered = bytearray(GOLDEN)
            altered[position] ^= 1 << bit
            refused(bytes(altered))


def test_every_doubled_and_every_missing_byte_is_refused() -> None:
    for position in range(len(GOLDEN)):
        refused(GOLDEN[:position] + GOLDEN[position : position + 1] + GOLDEN[position:])
        refused(GOLDEN[:position] + GOLDEN[position + 1 :])


def test_two_swapped_tensor_bytes_are_refused() -> None:
    altered = bytearray(GOLDEN)
    altered[-1], altered[-2] = altered[-2], altered[-1]
    refused(bytes(altered), "checksum")


def test_trailing_bytes_are_refused() -> None:
    refused(GOLDEN + b"\0")
    refused(sealed(GOLDEN_HEADER, DATA + b"\0"), "after its last tensor")


@pytest.mark.parametrize("claimed", [0, 1, len(GOLDEN), 2**32, 2**63, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(claimed: int) -> None:
    message = bytearray(GOLDEN)
    message[:8] = claimed.to_bytes(8, "little")
    message[37:53] = b"0" * 16
    message[37:53] = xxhash.xxh3_64(message).hexdigest().encode()
    refused(bytes(message))


def test_a_header_above_the_limit_is_refused_before_it_is_parsed() -> None:
    header = GOLDEN_HEADER + b" " * MAX_HEADER_BYTES
    refused(sealed(header), "larger than the")


SHAPES: list[Any] = [
    [2**40],
    [2**40, 2**40],
    [2**62, 8],
    [2**64, 0],
    [10**30, 0],
    [0, 10**400],
    [-1],
    [-1, -2],
    [2.0],
    [1, 2.0],
    [True, 2],
    ["2"],
    [None],
    [[2]],
    [1] * 9,
    [1] * 2000,
    "12",
    {"1": 2},
    {},
    2,
    None,
    "",
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: repr(shape)[:30])
def test_a_shape_that_lies_is_refused(shape: object) -> None:
    refused(with_tensor({"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}, DATA[:8]))
    refused(with_tensor({"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}, b""))


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 4],
        [0, 12],
        [4, 12],
        [8, 0],
        [-8, 0],
        [0, 2**62],
        [2**64, 2**64 + 8],
        [0.0, 8.0],
        ["0", "8"],
        [None, 8],
        [0],
        [0, 8, 8],
        [],
        "08",
        {},
        None,
        8,
        [float("nan"), 8],
        [float("inf"), 8],
    ],
    ids=repr,
)
def test_data_offsets_that_lie_are_refused(offsets: object) -> None:
    refused(with_tensor({"dtype": "F32", "shape": [2], "data_offsets": offsets}, DATA[:8]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param([0, 8], [0, 8], id="the same bytes twice"),
        pytest.param([0, 8], [4, 12], id="overlapping"),
        pytest.param([0, 8], [12, 20], id="a hole between"),
        pytest.param([4, 12], [12, 20], id="a hole before"),
    ],
)
def test_tensors_that_overlap_or_leave_holes_are_refused(
    first: list[int], second: list[int]
) -> None:
    changed = {
        "__metadata__": document()["__metadata__"],
        "x": {"dtype": "F32", "shape": [2], "data_offsets": first},
        "y": {"dtype": "F32", "shape": [2], "data_offsets": second},
    }
    refused(sealed(json.dumps(changed, separators=(",", ":")).encode(), b"\0" * second[1]))


@pytest.mark.parametrize("dtype", ["F8", "f32", "", "float32", 4, None, ["F32"], {"F32": 1}])
def test_an_unknown_dtype_is_refused(dtype: object) -> None:
    refused(with_tensor({"dtype": dtype, "shape": [2], "data_offsets": [0, 8]}, DATA[:8]))


@pytest.mark.parametrize("entry", [None, 1, "x", [], {}, {"dtype": "F32"}, [["dtype", "F32"]]])
def test_a_tensor_entry_of_another_form_is_refused(entry: object) -> None:
    refused(with_tensor(entry))


def test_too_many_tensors_are_refused() -> None:
    changed: dict[str, Any] = {"__metadata__": document()["__metadata__"]}
    for index in range(MAX_TENSORS + 1):
        changed[f"t{index}"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    refused(sealed(json.dumps(changed, separators=(",", ":")).encode(), b""), "at most")


def test_a_name_given_twice_is_refused() -> None:
    """Readers differ in which of the two they take, so nobody may take either."""
    entry = b'"x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}'
    assert entry in GOLDEN_HEADER
    other = entry.replace(b"[1,2]", b"[2,1]")
    refused(sealed(GOLDEN_HEADER.replace(entry, other + b"," + entry)))


def test_a_metadata_field_given_twice_is_refused() -> None:
    refused(sealed(GOLDEN_HEADER.replace(b'"seq":"7"', b'"seq":"8","seq":"7"')))


@pytest.mark.parametrize("depth", [100, 900, 20_000])
def test_deeply_nested_json_is_refused(depth: int) -> None:
    nested = b'"deep":' + b"[" * depth + b"]" * depth + b',"x":{"dtype"'
    refused(sealed(GOLDEN_HEADER.replace(b'"x":{"dtype"', nested)))


@pytest.mark.parametrize(
    "text",
    [b"}", b",", b'"', b"\xff\xfe", b"NaN", b"\0", b'{"a":1}'],
    ids=repr,
)
def test_a_header_that_is_not_one_json_object_is_refused(text: bytes) -> None:
    refused(sealed(GOLDEN_HEADER + text))


def test_metadata_that_is_no_object_of_texts_is_refused() -> None:
    for replacement in (
        b'{"checksum":"f06fc2765fc8c11e"}',
        b'{"checksum":"f06fc2765fc8c11e","a":1}',
    ):
        start = GOLDEN_HEADER.index(b'{"checksum"')
        end = GOLDEN_HEADER.index(b"},") + 1
        refused(sealed(GOLDEN_HEADER[:start] + replacement + GOLDEN_HEADER[end:]))


@pytest.mark.parametrize("version", ["shardline/0", "shardline/2", "shardline/1 ", "", None, 1])
def test_another_format_version_is_refused_by_name(version: object) -> None:
    refused(with_metadata(format=version), "format")


@pytest.mark.parametrize("codec", ["int4", "float64", "int8 ", "", "FLOAT32", None, 1, ["float32"]])
def test_an_unknown_codec_is_refused(codec: object) -> None:
    refused(with_metadata(codec=codec))


def test_a_metadata_field_too_many_or_too_few_is_refused_by_name() -> None:
    refused(with_metadata(shiny="1"), "shiny")
    for field in document()["__metadata__"]:
        if field in ("checksum", "format"):
            continue
        changed = document()
        del changed["__metadata__"][field]
        refused(sealed(json.dumps(changed, separators=(",", ":")).encode()), field)


@pytest.mark.parametrize("field", ["seq", "attempt", "low", "stage", "sent_us"])
@pytest.mark.parametrize(
    "value",
    ["", "-1", "+1", " 1", "1.0", "0x1", "1_0", "١", "²", "9" * 19, "9" * 5000, 1, None, []],
)
def test_a_number_that_is_none_is_refused(field: str, value: object) -> None:
    refused(with_metadata(**{field: value}))


@pytest.mark.parametrize(
    "epoch",
    ["", "g" * 16, "0" * 15, "0" * 17, "DEADBEEFDEADBEEF", "000000000000000\n", " " * 16, 1, None],
)
def test_an_epoch_that_is_none_is_refused(epoch: object) -> None:
    refused(with_metadata(epoch=epoch))


@pytest.mark.parametrize(
    "plan",
    ["", "x", "+", "0123456789ABCDEF", "0" * 17, "0" * 10_000, 1, None, [], {"a": 1}],
    ids=lambda plan: repr(plan)[:20],
)
def test_a_plan_id_that_is_none_is_refused(plan: object) -> None:
    refused(with_metadata(plan=plan))


@pytest.mark.parametrize(
    "name", ["", "+", "#", "a/b", "a b", "-a", "pipeline", "é", "a\n", "a" * 64, 1, None, ["a"]]
)
def test_a_client_that_is_no_name_is_refused(name: object) -> None:
    refused(with_metadata(client=name))


@pytest.mark.parametrize(
    "route", ["", ",", "pi-0,", "pi-0,+", "pi-0,#", "pi-0/x,pi-1", "pi-0, pi-1", 1, None, ["pi-0"]]
)
def test_a_route_with_no_names_is_refused(route: object) -> None:
    refused(with_metadata(route=route))


def test_a_stage_behind_the_end_of_the_route_is_refused() -> None:
    refused(with_metadata(stage="3"), "route")


def test_more_hops_than_stages_passed_are_refused() -> None:
    refused(with_metadata(trace="1,2,3,4;1,2,3,4"), "hops")


@pytest.mark.parametrize(
    "trace",
    [
        "1,2,3",
        "1,2,3,4,5",
        ";",
        "1,2,3,4;",
        "a,b,c,d",
        "1.5,2,3,4",
        "1,2,3," + "9" * 5000,
        "1,2,3," + "9" * 4000,  # an integer that no float can hold
        "-1,2,3,4",
        1,
        ["1,2,3,4"],
        0,
        None,
    ],
    ids=lambda trace: repr(trace)[:20],
)
def test_a_trace_that_is_none_is_refused(trace: object) -> None:
    refused(with_metadata(trace=trace))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"hello",
        b"{}",
        b'{"seq": 1}',
        b"\x93NUMPY\x01\x00v\x00",
        b"\x80\x04\x95",  # a pickle
        b"PK\x03\x04",
        b"\x00" * 4096,
        b"\xff" * 4096,
        safetensors.numpy.save({"x": np.zeros((1, 2), np.float32)}),
        safetensors.numpy.save({"x": np.zeros((1, 2), np.float32)}, {"format": "pt"}),
        safetensors.numpy.save({"x": np.zeros(1, np.uint8)}, {"checksum": "0" * 16}),
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_foreign_payloads_are_refused(payload: bytes) -> None:
    refused(payload)


def test_an_oversized_message_is_refused_before_its_checksum_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def explode(*_arguments: object) -> None:
        raise AssertionError("the checksum of an oversized message was computed")

    monkeypatch.setattr("contract.activation.xxhash.xxh3_64", explode)
    refused(b"\0" * 10_000, "largest", max_bytes=9_999)


@given(st.binary(max_size=400))
@example(b"")
def test_random_bytes_are_refused(payload: bytes) -> None:
    refused(payload)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["F32", "U8", "1", "0", "pi-0", "shardline/1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from([*document()["__metadata__"]][2:]), json_values, max_size=3),
    st.dictionaries(st.sampled_from(["x", "y", "z"]), json_values, max_size=3),
    st.binary(max_size=32),
)
def test_a_sealed_message_of_random_json_is_read_or_refused(
    metadata: dict[str, object], entries: dict[str, object], data: bytes
) -> None:
    changed = document()
    changed["__metadata__"].update(metadata)
    changed.update(entries)
    header = json.dumps(changed, separators=(",", ":")).encode()
    with contextlib.suppress(WireFormatError):
        decode(sealed(header, data))


@pytest.mark.parametrize("scalars", ["past", "past=", "past=-1", "Past=1", "a=1,a=2", "a=1,", "=1"])
def test_scalars_that_are_none_are_refused(scalars: str) -> None:
    refused(with_metadata(scalars=scalars))
