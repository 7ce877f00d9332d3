"""What may not happen, whatever arrives: an exception outside our tree, an answer that is wrong,
memory beyond what the input itself, or its plan, can justify.

A target takes bytes and returns, or raises :class:`HarmError` or anything else that is not ours.
"""

import contextlib
import shutil
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from broker.transport import AckToken, Delivery
from client.feed import FeedWatch
from contract.activation import decode, encode
from contract.blob import BlobChunk, BlobRequest, encode_chunk, parse_blob
from contract.clock import parse_clock
from contract.codec import compress, expand, wire_specs
from contract.command import parse_command
from contract.errors import (
    PlanError,
    ShardError,
    ShardHashMismatchError,
    ShardlineError,
    WeightsError,
    WireFormatError,
)
from contract.nack import parse_nack
from contract.plan import MAX_MESSAGE_BYTES, ShardFile, parse_plan
from contract.status import parse_status
from shards.download import Download
from shards.external_data import check_external_data
from shards.manifest import WEIGHTS_FILE, load_manifest
from shards.reader import find_copy, read_shard
from shards.source import ShardSource
from shards.weights_file import read_layout, read_metadata
from shards.writer import describe_file
from tests.fuzz.corpus import FILES, SPECS, TRANSFERRED, built
from tests.stage.harness import Bench, make_bench

BASE_BYTES = 16 * 1024 * 1024
PER_BYTE = 64
"""Memory that an input may cost, beyond what was there: Python's objects for JSON are large, and
int8 becomes float32. An input that only *says* how large it is gets none of it."""
MAX_MESSAGE = 1 << 20


class HarmError(AssertionError):
    """A target did what it must not do."""


@cache
def _room() -> Path:
    """A folder for files, in memory where there is such a place."""
    shared = Path("/dev/shm")
    return Path(mkdtemp(prefix="shardline-fuzz-", dir=shared if shared.is_dir() else None))


def clean_up() -> None:
    """Remove what targets have written."""
    if _room.cache_info().currsize:
        shutil.rmtree(_room(), ignore_errors=True)


@cache
def _bench() -> Bench:
    return make_bench(_room() / "stage", codecs=("int8", "float16"))


def activation(data: bytes) -> None:
    """Decode, expand, encode again; and let a stage process it as it does all that arrives."""
    _process(data)
    try:
        header, tensors = decode(data, MAX_MESSAGE)
    except WireFormatError:
        return
    again = decode(encode(header, tensors))
    if again.header != header or set(again.tensors) != set(tensors):
        raise HarmError(f"{header} becomes {again.header}")
    for name, tensor in tensors.items():
        other = again.tensors[name]
        if (tensor.dtype, tensor.shape, tensor.tobytes()) != (
            other.dtype,
            other.shape,
            other.tobytes(),
        ):
            raise HarmError(f"tensor {name!r} becomes another one")
    with contextlib.suppress(WireFormatError):
        expanded = expand(header.codec, SPECS, tensors)
        if header.codec != "float32":
            for spec in SPECS:
                if not spec.fits(expanded[spec.name]):
                    raise HarmError(f"{spec.name}: {expanded[spec.name].shape} is not the plan's")
            with contextlib.suppress(WireFormatError):  # -128, or scales that no stage sends
                sent = compress(header.codec, expanded)
                if set(sent) != {spec.name for spec in wire_specs(header.codec, SPECS)}:
                    raise HarmError("compressing gives other tensors")


def _process(data: bytes) -> None:
    bench = _bench()
    acked: list[bool] = []
    token = AckToken(lambda: acked.append(True))
    with np.errstate(all="ignore"):  # made-up numbers overflow; a model's business, not ours
        bench.runner.process(Delivery(bench.topic(), data, 1, False, token), received_us=1)
    bench.connection.published.clear()
    bench.events.clear()
    if acked != [True]:
        raise HarmError(f"the stage acknowledged it {len(acked)} times")


def plan(data: bytes) -> None:
    """Read a plan, and what a device and a client do with one; and every other JSON message."""
    for parse in (parse_nack, parse_status, parse_command, parse_clock):
        with contextlib.suppress(WireFormatError):
            parse(data)
    try:
        found = parse_plan(data, "fuzz")
    except PlanError:
        return
    if found.max_message_bytes() > MAX_MESSAGE_BYTES:
        raise HarmError("a plan of messages that nobody can carry")
    if parse_plan(found.to_json(), "again") != found:
        raise HarmError("the plan is another when it is read again")
    parse_plan(found.to_message(), "the message")
    for device in [r.device for spot in found.placement for r in spot.replicas]:
        if found.stage_of(device) is None or found.replica_of(device) is None:
            raise HarmError(f"{device} is placed and serves nothing")
    for edge in range(found.num_stages + 1):
        found.codec_of_edge(edge)
    found.edge_addresses()
    if found.placement:
        watch = FeedWatch("client", None)
        watch.take_plan(found, 0.0)
        if watch.feed.window < 1 or watch.feed.router.choose() is not None:
            raise HarmError(f"a window of {watch.feed.window}, or a route without devices")
        watch.waiting_for()


def shard(data: bytes) -> None:
    """Read one file of a shard: its first byte says which one it stands for."""
    name, content = FILES[data[0] % len(FILES) if data else 0], data[1:]
    files, plan_ = built().files, built().plan
    folder = _room() / "stage-1"
    folder.mkdir(exist_ok=True)
    for other, whole in files.items():
        (folder / other).write_bytes(content if other == name else whole)
    with contextlib.suppress(ShardError):
        load_manifest(folder)
    with contextlib.suppress(WeightsError):
        size = (folder / WEIGHTS_FILE).stat().st_size
        for entry in read_layout(folder / WEIGHTS_FILE).values():
            if not 0 <= entry.offset <= entry.offset + entry.length <= size:
                raise HarmError(f"{entry} lies outside the file")
        read_metadata(folder / WEIGHTS_FILE)
    with contextlib.suppress(ShardlineError):
        read_shard(folder, plan_, 1)
        if content != files[name] and name != "manifest.json":
            raise HarmError(f"a {name} of other bytes was accepted")
    find_copy(_room(), plan_.plan_id, 1, {plan_.stages[1].graph, plan_.stages[1].weights})
    if name == "graph.onnx":
        _graph(folder / name, content)


def _graph(path: Path, content: bytes) -> None:
    """Where our reader sees only the weights file, ONNX's own must not see another one."""
    try:
        check_external_data(path, 10**6)
    except ShardError:
        return
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, RuntimeError, ValueError):
        return
    tensors = list(onnx.external_data_helper._get_all_tensors(model))
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value != WEIGHTS_FILE:
                raise HarmError(f"ONNX reads {entry.value!r}, which was not noticed")


class _Dice:
    """Choices made by the bytes of an input; all the first one when they run out."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        if self._at >= len(self._data):
            return 0
        value = self._data[self._at]
        self._at += 1
        return value % count

    @property
    def is_out(self) -> bool:
        return self._at >= len(self._data)


def blob(data: bytes) -> None:
    """A message on a blob topic, or a fetch from a planner whose answers the input chooses."""
    if data[:1] == b"\xff":
        _message(data[1:])
        return
    file = _room() / "source"
    if not file.exists():
        file.write_bytes(TRANSFERRED)
    expected = describe_file(file)
    partial = _room() / "partial"
    partial.unlink(missing_ok=True)
    dice = _Dice(data)
    partial.write_bytes([b"", TRANSFERRED[:100], b"x" * 50, b"x" * 5000][dice.below(4)])
    with Download(expected, partial, chunk_bytes=256, window=1 + dice.below(6)) as download:
        _talk(download, ShardSource({expected.sha256: file}), expected, dice)
        if download.written_bytes > expected.size_bytes:
            raise HarmError(f"{download.written_bytes} bytes of {expected.size_bytes} are written")
        if not download.is_whole:
            return
        try:
            download.verify()
        except ShardHashMismatchError:
            if partial.exists():
                raise HarmError("wrong bytes are kept") from None
            return
    if partial.read_bytes() != TRANSFERRED:
        raise HarmError("other bytes passed for the file")


def _message(data: bytes) -> None:
    try:
        found = parse_blob(data)
    except WireFormatError:
        return
    if isinstance(found, BlobRequest):
        file = _room() / "source"
        file.write_bytes(TRANSFERRED)
        answer = ShardSource({found.sha256: file}).answer(found)
        if isinstance(answer, BlobChunk):
            again = parse_blob(encode_chunk(answer))
            if not isinstance(again, BlobChunk) or bytes(again.data) != answer.data:
                raise HarmError("a chunk becomes another one")
    elif isinstance(found, BlobChunk) and len(found.data) > len(data):
        raise HarmError("a chunk of more bytes than its message")


def _talk(download: Download, source: ShardSource, expected: ShardFile, dice: _Dice) -> None:
    now_s = 0.0
    waiting: list[BlobRequest] = []
    for _ in range(400):
        now_s += 0.1 if dice.is_out else dice.below(50) / 10
        waiting += download.due(now_s)
        if not waiting:
            return
        request = waiting.pop(dice.below(len(waiting)))
        answer = source.answer(request)
        if not isinstance(answer, BlobChunk):
            raise HarmError(f"asked for {request}, which is not there")
        sha, offset, part = answer.sha256, answer.offset, bytes(answer.data)
        match dice.below(12):
            case 1:
                continue  # lost
            case 2:
                part = part[: dice.below(len(part) + 1)]
            case 3:
                part = bytes(len(part))
            case 4:
                offset += 1 - 2 * dice.below(2)
            case 5:
                offset = 2**63 - 1
            case 6:
                sha = "0" * 64
            case 7:
                part *= 9
            case 8:
                waiting += download.accept(answer, now_s)  # comes twice
            case 9:
                offset = dice.below(10) * 256
        waiting += download.accept(BlobChunk(sha, offset, part), now_s)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "activation": activation,
    "plan": plan,
    "shard": shard,
    "blob": blob,
}


def run_measured(target: Callable[[bytes], None], data: bytes) -> int:
    """Run a target; the most memory that it had at once, as far as Python and numpy tell.

    Raises:
        HarmError: more than an input of this size may cost.
    """
    tracemalloc.start()
    try:
        target(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > BASE_BYTES + PER_BYTE * len(data):
        raise HarmError(f"{peak:,} bytes of memory for an input of {len(data):,}")
    return peak
