"""Inputs that get past the first check: checksums, lengths and ids fit what was changed.

A mutator takes an input and a random generator; the same generator gives the same input again.
"""

import copy
import hashlib
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import xxhash

from contract.plan import FORMAT_VERSION
from tests.contract.test_activation_malformed import sealed
from tests.fuzz.corpus import FILES

Mutator = Callable[[bytes, Random], bytes]


def _deep(levels: int) -> Any:
    nested: Any = 0
    for _ in range(levels):
        nested = [nested]
    return nested


NASTY: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        255,
        2**31,
        2**32,
        2**53,
        2**62,
        2**63,
        2**64,
        10**30,
        10**400,
    ),
    *(0.0, -0.5, 1.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *("", "0", "x", "batch", "\0", "\n", "\x1b[2J", "\ud800", "a" * 3000, "{0}%s%n", "[red]x[/]"),
    *("../../etc/passwd", "/etc/passwd", "$(id)", "float16", "int8", "float32", "9" * 20),
    *([], {}, [[]], [0], [1, 2, 3], ["batch"], ["batch"] * 9, [2**40, 2**40], {"a": 1}, _deep(300)),
)
"""Values that are wrong nearly everywhere."""


def bytes_of(data: bytes, dice: Random) -> bytes:
    """A few random edits that know nothing of the format."""
    edited = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        at = dice.randrange(len(edited) + 1)
        match dice.randrange(7):
            case 0 if at < len(edited):
                edited[at] ^= 1 << dice.randrange(8)
            case 1:
                edited[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 2:
                del edited[at : at + dice.randrange(1, 64)]
            case 3:
                end = at + dice.randrange(1, 64)
                edited[at:at] = edited[at:end] * dice.choice((1, 2, 50))
            case 4:
                number = dice.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
                edited[at : at + 8] = struct.pack(dice.choice("<>") + "Q", number)
            case 5:
                edited[at:] = b""
            case _ if at < len(edited):
                edited[at] = dice.randrange(256)
    return bytes(edited[: 1 << 20])


def json_of(value: Any, dice: Random) -> Any:
    """The same document with one place of it replaced, removed, doubled or renamed."""
    places = list(_places(value, ()))
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        place = dice.choice(places)
        if not place:
            continue
        holder = value
        try:
            for step in place[:-1]:
                holder = holder[step]
            _edit(holder, place[-1], dice)
        except (IndexError, KeyError, TypeError):
            continue  # an earlier edit took it away
    return value


def _places(value: Any, here: tuple[Any, ...]) -> Any:
    yield here
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*here, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from _places(value[index], (*here, index))


def _edit(holder: Any, key: Any, dice: Random) -> None:
    what = dice.randrange(8)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[str(dice.choice(NASTY))[:50]] = holder.pop(key)
    elif what == 2 and isinstance(holder, list):
        holder[key:key] = [holder[key]] * dice.choice((1, 3, 100))
    elif what == 3 and isinstance(holder[key], int):
        holder[key] += dice.choice((-1, 1, 2**32, 10**6))
    elif what == 4 and isinstance(holder[key], str):
        text = holder[key]
        at = dice.randrange(len(text) + 1)
        holder[key] = text[:at] + str(dice.choice(NASTY))[:200] + text[at:]
    else:
        holder[key] = copy.deepcopy(dice.choice(NASTY))  # a later edit may be one of it


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def activation(data: bytes, dice: Random) -> bytes:
    """Edits in the header, sealed again; sometimes the plain bytes."""
    header_bytes = int.from_bytes(data[:8], "little")
    try:
        document = json.loads(data[8 : 8 + header_bytes])
    except (ValueError, RecursionError):
        return bytes_of(data, dice)
    tensors = data[8 + header_bytes :]
    match dice.randrange(5):
        case 0:
            return bytes_of(data, dice)
        case 1:
            tensors = bytes_of(tensors, dice)
        case 2 if isinstance(document, dict) and isinstance(document.get("__metadata__"), dict):
            metadata = document["__metadata__"]
            if metadata:
                key = dice.choice(sorted(metadata))
                metadata[key] = str(dice.choice(NASTY))[:5000]
        case _:
            document = json_of(document, dice)
    return sealed(_dumps(document), tensors)


def plan(data: bytes, dice: Random) -> bytes:
    """Edits anywhere, and a plan id that fits what came of them."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return bytes_of(data, dice)
    if dice.randrange(8) == 0:
        return bytes_of(data, dice)
    document = json_of(document, dice)
    try:
        kept = ("inputs", "outputs", "codec", "graph", "weights")
        computation = {
            "format_version": FORMAT_VERSION,
            "digest": document["model"]["digest"],
            "stages": [{key: stage[key] for key in kept} for stage in document["stages"]],
        }
        canonical = json.dumps(computation, sort_keys=True, separators=(",", ":"))
        document["plan_id"] = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    except (KeyError, TypeError):
        pass
    return _dumps(document)


def shard(data: bytes, dice: Random) -> bytes:
    """Edits in one file of a shard, by what the file is."""
    which, content = data[:1] or b"\0", data[1:]
    name = FILES[which[0] % len(FILES)]
    if dice.randrange(4) == 0:
        return which + bytes_of(content, dice)
    try:
        if name == "manifest.json":
            return which + _dumps(json_of(json.loads(content), dice))
        if name == "weights.safetensors":
            size = int.from_bytes(content[:8], "little")
            text = _dumps(json_of(json.loads(content[8 : 8 + size]), dice))
            return which + struct.pack("<Q", len(text)) + text + content[8 + size :]
    except (ValueError, RecursionError):
        return which + bytes_of(content, dice)
    for word, others in (
        (b"weights.safetensors", (b"../../../etc/passwd", b"/etc/shadow\0\0\0\0\0\0\0\0")),
        (b"location", (b"LOCATION", b"locatiom")),
        (b"offset", (b"length", b"Offset")),
    ):
        if dice.randrange(3) == 0:
            content = content.replace(word, dice.choice(others), dice.choice((-1, 1)))
    return which + bytes_of(content, dice)


def blob(data: bytes, dice: Random) -> bytes:
    """Edits of the dice that play the planner; or of a message, with a checksum that fits."""
    if data[:1] != b"\xff":
        return bytes_of(data, dice)
    message = bytes_of(data[1:], dice)
    if message[:4] == b"SLB1" and len(message) > 13 and dice.randrange(2):
        message = (
            message[:5] + struct.pack("<Q", xxhash.xxh3_64_intdigest(message[13:])) + message[13:]
        )
    elif message[:1] == b"{":
        with suppress(ValueError, RecursionError):
            message = _dumps(json_of(json.loads(message), dice))
    return b"\xff" + message


MUTATORS: dict[str, Mutator] = {
    "activation": activation,
    "plan": plan,
    "shard": shard,
    "blob": blob,
}
