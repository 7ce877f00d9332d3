"""Writes shards. A folder appears under its name only when all of it is written."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from contract.plan import ShardFile
from shards.manifest import GRAPH_FILE, MANIFEST_FILE, WEIGHTS_FILE, ShardManifest
from shards.weights_file import read_layout
from shards.weights_writer import ArraySpec, write_weights


class ByteRange(NamedTuple):
    """Where a tensor's bytes lie in a file, in bytes from its start."""

    offset: int
    length: int


class ShardFiles(NamedTuple):
    """The two hashed files of a shard."""

    graph: ShardFile
    weights: ShardFile


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to write into; on success it replaces ``target``, on failure nothing is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
            target.replace(old / target.name)
            partial.replace(target)
            shutil.rmtree(old)
        else:
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_shard_files(
    folder: Path,
    weights: Mapping[str, npt.NDArray[Any]],
    make_graph: Callable[[Mapping[str, ByteRange]], bytes],
) -> ShardFiles:
    """Write the weights, then the graph that refers to them by byte range.

    Args:
        folder: the stage folder; it is made.
        weights: every tensor that leaves the graph, by name.
        make_graph: given where each tensor lies in ``weights.safetensors``, the ONNX bytes.
    """
    folder.mkdir(parents=True)
    weights_path, graph_path = folder / WEIGHTS_FILE, folder / GRAPH_FILE
    graph_path.write_bytes(make_graph(write_arrays(weights_path, weights)))
    for path in (weights_path, graph_path):
        path.chmod(0o644)
    return ShardFiles(describe_file(graph_path), describe_file(weights_path))


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, ByteRange]:
    """Write a safetensors file; where each array lies in it."""
    specs = {name: ArraySpec(array.dtype.name, array.shape) for name, array in arrays.items()}
    write_weights(path, specs, arrays.__getitem__)
    return {name: ByteRange(its.offset, its.length) for name, its in read_layout(path).items()}


def write_manifest(folder: Path, manifest: ShardManifest) -> None:
    """Write ``manifest.json``, the last file of a shard."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1) + "\n")


def describe_file(path: Path) -> ShardFile:
    """Hash and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardFile(sha256=digest, size_bytes=path.stat().st_size)
