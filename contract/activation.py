"""The activation message: a safetensors buffer whose metadata says what it is and how it travels.

    offset  size  content
    0       8     N, the length of the header (little-endian, unsigned)
    8       29    the bytes  {"__metadata__":{"checksum":"
    37      16    XXH3-64 of the whole message with these 16 bytes set to ASCII 0, lower-case hex
    53      N-45  the rest of the header: JSON, padded with spaces to a multiple of 8
    8+N     …     the tensors, little-endian, without holes

Specification of the container: https://github.com/huggingface/safetensors#format. The checksum
covers the header too, since a flipped batch id is a wrong result. Header fields are described in
docs/wire-format.md. The codec is only named here: ``contract/codec.py`` makes and reads the tensors
that it means. This module takes and returns bytes and never touches a socket.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import xxhash

from contract.codec import CODECS, Codec
from contract.errors import WireFormatError
from contract.placement import MAX_STAGES
from contract.tensor_spec import MAX_RANK, MAX_TENSORS, Tensors
from contract.topics import is_name, is_plan_id

FORMAT = "shardline/1"
MAX_HEADER_BYTES = 64 * 1024

_PREFIX = b'{"__metadata__":{"checksum":"'
_CHECKSUM = slice(8 + len(_PREFIX), 8 + len(_PREFIX) + 16)
_ZEROS = b"0" * 16
_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_HEX16 = re.compile(r"[0-9a-f]{16}")
_SCALAR = re.compile(r"[a-z][a-z0-9_]{0,31}")
_METADATA_KEYS = frozenset(
    {"checksum", "format", "plan", "epoch", "seq", "attempt", "low", "stage", "route", "client"}
    | {"codec", "scalars", "sent_us", "trace"}
)
_MAX_COUNT = 2**63


class BatchId(NamedTuple):
    """``epoch``: 64 random bits for each start of a client. ``seq``: the batch's number in it."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch:016x}:{self.seq}"


class Hop(NamedTuple):
    """What one stage did with the batch, in microseconds of that device's own Unix clock."""

    received_us: int
    started_us: int
    finished_us: int
    sent_us: int


@dataclass(frozen=True, slots=True)
class Header:
    """All that decides what becomes of a message.

    ``stage_index`` is the stage that the message is the input of; in a result it is the number of
    stages. ``route`` names the device of every stage. ``low`` is the lowest batch number of the
    epoch that is still open: anything below it is stale. ``trace`` has one entry per stage passed.
    ``scalars`` are whole numbers that stages compute with and that no tensor carries, such as the
    length of a past; image models have none.
    """

    plan_id: str
    batch_id: BatchId
    attempt: int
    low: int
    stage_index: int
    route: tuple[str, ...]
    client: str
    sent_us: int
    trace: tuple[Hop, ...] = ()
    codec: Codec = "float32"
    scalars: tuple[tuple[str, int], ...] = ()

    @property
    def sender(self) -> str:
        """Who sends this message by its own word: the device before on the route, or the client.

        A language model's last stage sends each token to the first (``contract/decoder.py``).
        """
        if not self.stage_index and ("returned", 1) not in self.scalars:
            return self.client
        return self.route[self.stage_index - 1]


class Activation(NamedTuple):
    """A decoded message. The tensors are read-only views into the payload."""

    header: Header
    tensors: Tensors


def encode(header: Header, tensors: Tensors) -> bytes:
    """One message of ``header`` and ``tensors`` (numpy arrays of any layout).

    Raises:
        WireFormatError: a tensor has a dtype that the format does not have.
    """
    entries = [_encode_metadata(header)]
    parts: list[bytes | memoryview] = []
    offset = 0
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor)
        code = _CODES.get(array.dtype)
        if code is None:
            raise WireFormatError(
                f"tensor `{name}`: dtype {array.dtype} cannot travel, expected one of "
                f"{sorted(_DTYPES)}"
            )
        entries.append(_encode_entry(name, code, tensor.shape, offset, offset + array.nbytes))
        offset += array.nbytes
        parts.append(array.reshape(-1).view(np.uint8).data)
    text = f"{{{','.join(entries)}}}".encode("ascii")
    text += b" " * (-len(text) % 8)
    head = bytearray(len(text).to_bytes(8, "little") + text)
    digest = xxhash.xxh3_64(head)
    for part in parts:
        digest.update(part)
    head[_CHECKSUM] = digest.hexdigest().encode()
    return b"".join((head, *parts))


def _encode_metadata(header: Header) -> str:
    """The first entry. Written by hand: every value is digits or names, nothing needs escaping."""
    epoch, seq = header.batch_id
    trace = ";".join([",".join(map(str, hop)) for hop in header.trace])
    scalars = ",".join([f"{name}={value}" for name, value in header.scalars])
    return (
        f'"__metadata__":{{"checksum":"{_ZEROS.decode()}","format":"{FORMAT}"'
        f',"plan":"{header.plan_id}","epoch":"{epoch:016x}","seq":"{seq}"'
        f',"attempt":"{header.attempt}","low":"{header.low}","stage":"{header.stage_index}"'
        f',"route":"{",".join(header.route)}","client":"{header.client}","codec":"{header.codec}"'
        f',"scalars":"{scalars}","sent_us":"{header.sent_us}","trace":"{trace}"}}'
    )


@lru_cache(maxsize=1024)
def _encode_entry(name: str, code: str, shape: tuple[int, ...], begin: int, end: int) -> str:
    entry = {"dtype": code, "shape": shape, "data_offsets": (begin, end)}
    return f"{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}"


def decode(payload: bytes, max_bytes: int | None = None) -> Activation:
    """Inverse of :func:`encode`. Nothing is allocated for tensors: they are views of ``payload``.

    Raises:
        WireFormatError: larger than ``max_bytes``, truncated, altered, or not of this format.
    """
    if max_bytes is not None and len(payload) > max_bytes:
        raise WireFormatError(
            f"message of {len(payload):,} bytes: this plan's largest is {max_bytes:,}"
        )
    if payload[8 : _CHECKSUM.start] != _PREFIX or len(payload) < _CHECKSUM.stop:
        raise WireFormatError(
            f"message of {len(payload):,} bytes does not begin as a {FORMAT} activation does"
        )
    header_bytes = int.from_bytes(payload[:8], "little")
    if header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > len(payload):
        raise WireFormatError(
            f"message of {len(payload):,} bytes says that its header has {header_bytes:,}; "
            f"it is truncated, or larger than the {MAX_HEADER_BYTES:,} allowed"
        )
    view = memoryview(payload)
    digest = xxhash.xxh3_64(view[: _CHECKSUM.start])
    digest.update(_ZEROS)
    digest.update(view[_CHECKSUM.stop :])
    if digest.hexdigest().encode() != payload[_CHECKSUM]:
        raise WireFormatError("message altered or truncated on its way: the checksum does not fit")
    try:
        document = _DECODER.decode(payload[8 : 8 + header_bytes].decode())
        header = _parse_metadata(document.pop("__metadata__"))
        tensors = _parse_tensors(document, payload, 8 + header_bytes)
    except WireFormatError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise WireFormatError(f"message header is not valid: {error!r:.200}") from error
    return Activation(header, tensors)


def _count(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) >= _MAX_COUNT:
        raise WireFormatError(f"message header: {field} is {text!r:.40}, expected a number")
    return int(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers must not read two different messages: the format refuses duplicate keys."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise WireFormatError("message header: a name is given twice")
    return document


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates)


def _parse_metadata(metadata: dict[str, Any]) -> Header:
    if metadata.get("format") != FORMAT:
        raise WireFormatError(
            f"message format {metadata.get('format')!r:.40}, expected {FORMAT!r}; "
            "run the same Shardline version everywhere"
        )
    if set(metadata) != _METADATA_KEYS:
        difference = sorted(set(metadata) ^ _METADATA_KEYS)
        raise WireFormatError(f"message header: missing or unknown fields {difference!r:.200}")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise WireFormatError("message header: a field of __metadata__ is not a string")
    if not is_plan_id(metadata["plan"]):
        raise WireFormatError(f"message header: plan is {metadata['plan']!r:.40}")
    if not _HEX16.fullmatch(metadata["epoch"]):
        raise WireFormatError(f"message header: epoch is {metadata['epoch']!r:.40}")
    if metadata["codec"] not in CODECS:
        raise WireFormatError(
            f"message codec {metadata['codec']!r:.40}, this version knows {sorted(CODECS)}"
        )
    header = Header(
        plan_id=metadata["plan"],
        batch_id=BatchId(int(metadata["epoch"], 16), _count(metadata["seq"], "seq")),
        attempt=_count(metadata["attempt"], "attempt"),
        low=_count(metadata["low"], "low"),
        stage_index=_count(metadata["stage"], "stage"),
        route=_parse_route(metadata["route"], metadata["client"]),
        client=metadata["client"],
        sent_us=_count(metadata["sent_us"], "sent_us"),
        trace=_parse_trace(metadata["trace"]),
        codec=metadata["codec"],
        scalars=_parse_scalars(metadata["scalars"]),
    )
    if header.stage_index > len(header.route) or len(header.trace) > header.stage_index:
        raise WireFormatError(
            f"message header: stage {header.stage_index} with a route of {len(header.route)} "
            f"and {len(header.trace)} hops behind it"
        )
    return header


@lru_cache(maxsize=256)
def _parse_route(text: str, client: str) -> tuple[str, ...]:
    """The same few over and over: a token is a message."""
    route = tuple(text.split(","))
    if len(route) > MAX_STAGES:
        raise WireFormatError(
            f"message header: a route of {len(route):,} devices, at most {MAX_STAGES}"
        )
    if not all(map(is_name, (client, *route))):
        raise WireFormatError("message header: the client or a device of the route is no name")
    return route


def _parse_scalars(text: str) -> tuple[tuple[str, int], ...]:
    if not text:
        return ()
    pairs = [entry.partition("=") for entry in text.split(",")]
    scalars = tuple((name, _count(value, "scalars")) for name, _, value in pairs)
    if not all(_SCALAR.fullmatch(name) for name, _ in scalars) or len(dict(scalars)) < len(pairs):
        raise WireFormatError(f"message header: scalars is {text!r:.80}")
    return scalars


def _parse_trace(text: str) -> tuple[Hop, ...]:
    if not text:
        return ()
    return tuple(
        Hop(*(_count(time, "trace") for time in entry.split(","))) for entry in text.split(";")
    )


def _parse_tensors(document: dict[str, Any], payload: bytes, start: int) -> Tensors:
    if len(document) > MAX_TENSORS:
        raise WireFormatError(f"message of {len(document)} tensors, at most {MAX_TENSORS}")
    tensors = {}
    expected_begin = 0
    for name, entry in sorted(document.items(), key=_begin):
        dtype = _DTYPES[entry["dtype"]]
        shape: Sequence[int] = entry["shape"]
        begin, end = entry["data_offsets"]
        if type(begin) is not int or type(end) is not int:  # true is 1 to Python, and to no other
            raise WireFormatError(f"tensor {name!r:.80}: offsets {begin!r:.40} and {end!r:.40}")
        if len(shape) > MAX_RANK or any(type(d) is not int or d < 0 for d in shape):
            raise WireFormatError(f"tensor {name!r:.80}: shape {shape!r:.80} is not allowed")
        count = 1
        for dimension in shape:  # stays exact for any size: Python integers do not overflow
            count *= dimension
        if begin != expected_begin or end - begin != count * dtype.itemsize:
            raise WireFormatError(
                f"tensor {name!r:.80}: {shape!r:.80} of {entry['dtype']} does not fill the bytes "
                f"{begin} to {end}"
            )
        if start + end > len(payload):
            raise WireFormatError(f"tensor {name!r:.80}: ends after the message; it is truncated")
        tensors[name] = np.frombuffer(payload, dtype, count, start + begin).reshape(shape)
        expected_begin = end
    if start + expected_begin != len(payload):
        raise WireFormatError("message has bytes after its last tensor")
    return tensors


def _begin(item: tuple[str, dict[str, Any]]) -> tuple[int, int]:
    begin, end = item[1]["data_offsets"]
    return int(begin), int(end)
