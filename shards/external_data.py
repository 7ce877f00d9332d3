"""Looks where a graph says that its weights lie, before an engine goes there.

An ONNX tensor may name any file as the place of its bytes; engines open it, relative to the graph.
A graph that came over the network must name the weights file beside it and nothing else, or a stage
could be made to compute with, and send away, whatever file its process may read.

A graph is a protobuf message: https://protobuf.dev/programming-guides/encoding/, field numbers from
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Only what can hold such a name is walked.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from contract.errors import ShardError, ShardMissingError
from shards.manifest import WEIGHTS_FILE

_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        **{5: "tensor", 10: "tensor", 6: "graph", 11: "graph"},
        **{22: "sparse tensor", 23: "sparse tensor"},
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Which fields of a message lead to the entries that say where a tensor's bytes lie."""
_KEY, _VALUE = 1, 2
_WORD = b"location"  # a part of a graph without it names no file, and is passed over
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MAX_DIGITS = 19


class _Part(NamedTuple):
    """A message inside the file, from byte ``begin`` to before ``end``."""

    kind: str
    begin: int
    end: int


class _Field(NamedTuple):
    """One field that has a length."""

    number: int
    begin: int
    end: int


def check_external_data(graph: Path, weights_bytes: int) -> None:
    """Look at every place that ``graph`` names for a tensor.

    Args:
        graph: an ONNX file.
        weights_bytes: size of the weights file beside it.

    Raises:
        ShardMissingError: there is no such file.
        ShardError: it names another file or bytes that the weights file does not have, or it is no
            protobuf message.
    """
    try:
        with graph.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                return  # nothing can be mapped, and it names nothing
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check(data, size, weights_bytes)
    except FileNotFoundError as error:
        raise ShardMissingError(graph) from error
    except (IndexError, OSError, ValueError) as error:
        raise ShardError(
            f"{graph}: not a graph of ours ({error}); copy the shard again, or build the plan "
            "again with `shardline plan`"
        ) from error


def _check(data: mmap.mmap, size: int, weights_bytes: int) -> None:
    waiting = [_Part("model", 0, size)]
    while waiting:
        part = waiting.pop()
        place: dict[bytes, bytes] = {}
        for field in _fields(data, part):
            kind = _PARTS[part.kind].get(field.number)
            if kind == "entry":
                key, value = _entry(data, _Part(kind, field.begin, field.end))
                if key in place:
                    raise ValueError(f"a tensor has {key!r:.40} twice")
                place[key] = value
            elif kind is not None and data.find(_WORD, field.begin, field.end) >= 0:
                waiting.append(_Part(kind, field.begin, field.end))
        if place:
            _check_place(place, weights_bytes)


def _entry(data: mmap.mmap, part: _Part) -> tuple[bytes, bytes]:
    found = {field.number: data[field.begin : field.end] for field in _fields(data, part)}
    return found.get(_KEY, b""), found.get(_VALUE, b"")


def _check_place(place: dict[bytes, bytes], weights_bytes: int) -> None:
    location = place.get(b"location", b"")
    if location != WEIGHTS_FILE.encode():
        raise ValueError(f"a tensor lies in {location!r:.80}, expected {WEIGHTS_FILE}")
    offset, length = (_number(place.get(key, b"0")) for key in (b"offset", b"length"))
    if offset + length > weights_bytes:
        raise ValueError(
            f"a tensor lies at {offset:,} to {offset + length:,} of {WEIGHTS_FILE}, which has "
            f"{weights_bytes:,} bytes"
        )


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise ValueError(f"a place of {text!r:.40}, expected a number of bytes")
    return int(text)


def _fields(data: mmap.mmap, part: _Part) -> Iterator[_Field]:
    """The fields of a message that have a length; the others hold numbers only.

    Raises:
        ValueError, IndexError: it ends in the middle of one, or is no message.
    """
    at, end = part.begin, part.end
    while at < end:
        tag, at = _varint(data, at)
        if tag >> 32:  # another reader may cut it off, and see another field
            raise ValueError(f"the {part.kind} at byte {part.begin:,} is no protobuf message")
        wire = tag & 7
        if wire == _LENGTH:
            length, at = _varint(data, at)
            if length > end - at:
                raise ValueError(f"the {part.kind} at byte {part.begin:,} is truncated")
            yield _Field(tag >> 3, at, at + length)
            at += length
        elif wire == _VARINT:
            _, at = _varint(data, at)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"the {part.kind} at byte {part.begin:,} is no protobuf message")
    if at != end:
        raise ValueError(f"the {part.kind} at byte {part.begin:,} is truncated")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of one to ten bytes, and the offset after it."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError(f"a number of more than ten bytes at {at:,}")
