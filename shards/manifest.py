"""`manifest.json`: what a shard is, which plan it belongs to, and the hashes of its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from contract.errors import ShardError, ShardMissingError
from contract.frozen import FrozenModel, explain
from contract.plan import ShardFile
from contract.tensor_spec import TensorSpec

MANIFEST_FILE = "manifest.json"
GRAPH_FILE = "graph.onnx"
WEIGHTS_FILE = "weights.safetensors"
MAX_MANIFEST_BYTES = 1024 * 1024


class ShardManifest(FrozenModel):
    """One shard. ``verified_with`` maps engine to the version it was checked with at build time."""

    format_version: Literal[1] = 1
    plan_id: str
    stage_index: int
    graph: ShardFile
    weights: ShardFile
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    verified_with: Mapping[str, str]


def load_manifest(folder: Path) -> ShardManifest:
    """Read a stage folder's manifest.

    Raises:
        ShardMissingError: there is none.
        ShardError: it is not a manifest.
    """
    path = folder / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            document = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ShardMissingError(path) from error
    try:
        return ShardManifest.model_validate_json(document)
    except ValidationError as error:
        raise ShardError(
            f"{path}: not a shard manifest ({explain(error)}); copy the stage folder "
            "again, or build the plan again with `shardline plan`"
        ) from error
