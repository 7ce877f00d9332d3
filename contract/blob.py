"""Shards in motion: a device asks for a range of a file by its hash, the planner sends the bytes.

A chunk is 53 bytes of header and the data, all integers little-endian:

    0   4  magic ``SLB1``
    4   1  format version, 1
    5   8  XXH3-64 (seed 0) of everything from byte 13 on
    13  32  sha256 of the whole file
    45  8  offset of the data in the file, bytes
    53  …  the data, 1 byte to 1 MiB

Requests and refusals are JSON objects. All travel at QoS 0: a device asks again for what does not
come, so the broker need not keep anything, and what it holds is bounded by what devices ask for.
"""

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import xxhash
from pydantic import Field, TypeAdapter, ValidationError

from contract.errors import WireFormatError
from contract.frozen import Count, FrozenModel, explain
from contract.printable import Detail

MAX_CHUNK_BYTES = 1024 * 1024
MAX_BLOB_JSON_BYTES = 4096
_MAGIC = b"SLB1"
_VERSION = 1
_HEAD = struct.Struct("<4sBQ")
_BODY = struct.Struct("<32sQ")
HEADER_BYTES = _HEAD.size + _BODY.size
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BlobRequest(FrozenModel):
    """A device asks for ``length`` bytes at ``offset`` of the file with this hash."""

    kind: Literal["request"] = "request"
    format_version: Literal[1] = 1
    sha256: Sha256
    offset: Count
    length: int = Field(gt=0, le=MAX_CHUNK_BYTES)


class BlobRefusal(FrozenModel):
    """The planner has no such file, or no such range of it."""

    kind: Literal["refusal"] = "refusal"
    format_version: Literal[1] = 1
    sha256: Sha256
    detail: Detail


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """Some bytes of a file. ``data`` is a view of the received message where it was decoded."""

    sha256: str
    offset: int
    data: bytes | memoryview

    @property
    def end(self) -> int:
        """Offset of the first byte after this chunk."""
        return self.offset + len(self.data)


_JSON: TypeAdapter[BlobRequest | BlobRefusal] = TypeAdapter(
    Annotated[BlobRequest | BlobRefusal, Field(discriminator="kind")]
)


def encode_chunk(chunk: BlobChunk) -> bytes:
    """The message that carries a chunk."""
    body = _BODY.pack(bytes.fromhex(chunk.sha256), chunk.offset) + bytes(chunk.data)
    return _HEAD.pack(_MAGIC, _VERSION, xxhash.xxh3_64_intdigest(body)) + body


def parse_blob(payload: bytes) -> BlobRequest | BlobRefusal | BlobChunk:
    """Read any message of a blob topic. Sizes are checked before anything is copied.

    Raises:
        WireFormatError: truncated, oversized, another version, a wrong checksum, or none of ours.
    """
    if payload[:1] == b"{":
        return _parse_json(payload)
    if len(payload) <= HEADER_BYTES:
        raise WireFormatError(f"blob of {len(payload)} bytes, a chunk has over {HEADER_BYTES}")
    if len(payload) > HEADER_BYTES + MAX_CHUNK_BYTES:
        raise WireFormatError(
            f"blob of {len(payload):,} bytes, a chunk has at most {MAX_CHUNK_BYTES:,} of data"
        )
    magic, version, checksum = _HEAD.unpack_from(payload)
    if magic != _MAGIC or version != _VERSION:
        raise WireFormatError(f"blob begins with {magic!r} version {version}: not a chunk of ours")
    view = memoryview(payload)
    if xxhash.xxh3_64_intdigest(view[_HEAD.size :]) != checksum:
        raise WireFormatError("blob: the checksum is wrong, it was damaged on its way")
    digest, offset = _BODY.unpack_from(payload, _HEAD.size)
    return BlobChunk(digest.hex(), offset, view[HEADER_BYTES:])


def _parse_json(payload: bytes) -> BlobRequest | BlobRefusal:
    if len(payload) > MAX_BLOB_JSON_BYTES:
        raise WireFormatError(f"blob request of {len(payload):,} bytes")
    try:
        return _JSON.validate_json(payload)
    except ValidationError as error:
        raise WireFormatError(f"not a blob request or refusal: {explain(error)}") from error
