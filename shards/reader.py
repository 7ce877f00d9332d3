"""Finds and verifies a shard. Nothing is loaded by an engine before this has passed."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from contract.errors import (
    PlanMismatchError,
    ShardError,
    ShardHashMismatchError,
    ShardMissingError,
)
from contract.plan import PLAN_FILE, Plan, ShardFile, StageSpec
from shards.external_data import check_external_data
from shards.manifest import (
    GRAPH_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ShardManifest,
    load_manifest,
)
from shards.writer import describe_file


@dataclass(frozen=True, slots=True)
class Shard:
    """A verified shard on disk."""

    folder: Path
    manifest: ShardManifest

    @property
    def graph_path(self) -> Path:
        """The ONNX graph without weights."""
        return self.folder / GRAPH_FILE

    @property
    def weights_path(self) -> Path:
        """The graph's external-data file."""
        return self.folder / WEIGHTS_FILE


def find_shard(shards_dir: Path, plan: Plan, stage_index: int) -> Path:
    """The stage's folder under ``shards_dir``: directly, in a plan's folder, or one level deeper.

    Raises:
        ShardMissingError: there is no folder of this stage at all.
        PlanMismatchError: there are such folders, but of other plans.
        ShardError: none fits, and one has a manifest that cannot be read.
    """
    folder = plan.stages[stage_index].folder
    candidates = [shards_dir / folder, *sorted(shards_dir.glob(f"*/{folder}"))]
    if shards_dir.name == folder:
        candidates.insert(0, shards_dir)
    found_plan = ""
    broken: ShardError | None = None
    for candidate in candidates:
        if not (candidate / MANIFEST_FILE).is_file():
            continue
        try:
            plan_id = load_manifest(candidate).plan_id
        except ShardError as error:
            broken = broken or error  # perhaps another plan's: a good one may follow
            continue
        if plan_id == plan.plan_id:
            return candidate
        found_plan = plan_id
    if broken is not None:
        raise broken
    if found_plan:
        raise PlanMismatchError(
            f"{shards_dir}: shard of stage {stage_index}",
            plan.plan_id,
            found_plan,
            f"copy {folder} of plan {plan.name!r} to this device",
        )
    plan_folder = shards_dir if (shards_dir / PLAN_FILE).exists() else shards_dir / plan.name
    raise ShardMissingError(plan_folder / folder / MANIFEST_FILE)


def find_copy(
    shards_dir: Path, plan_id: str, stage_index: int, files: Collection[ShardFile]
) -> Path | None:
    """A folder under ``shards_dir`` that has this stage with files of these sizes, if one has.

    Judged by the manifest; :func:`read_shard` hashes the files before they are used.
    """
    name = f"stage-{stage_index}"
    for folder in (shards_dir, shards_dir / name, *shards_dir.glob(f"*/{name}")):
        try:
            manifest = load_manifest(folder)
            sizes = {(folder / file).stat().st_size for file in (GRAPH_FILE, WEIGHTS_FILE)}
        except (ShardError, OSError):
            continue
        if (
            (manifest.plan_id, manifest.stage_index) == (plan_id, stage_index)
            and set(files) == {manifest.graph, manifest.weights}
            and sizes == {file.size_bytes for file in files}
        ):
            return folder
    return None


def read_shard(folder: Path, plan: Plan, stage_index: int) -> Shard:
    """Verify a stage folder against the plan: its id, its tensors, and the hash of every file.

    The graph may name no other file than the weights beside it.

    Raises:
        ShardMissingError: a file is not there.
        PlanMismatchError: the shard is of another plan.
        ShardError: the shard is of another stage, its tensors are not the plan's, or its graph
            names other files.
        ShardHashMismatchError: a file has other bytes than the plan says.
    """
    stage = plan.stages[stage_index]
    manifest = load_manifest(folder)
    if manifest.plan_id != plan.plan_id:
        raise PlanMismatchError(
            str(folder), plan.plan_id, manifest.plan_id, "copy the shard of this plan here"
        )
    _check_manifest(folder, manifest, stage)
    _check_file(folder / GRAPH_FILE, stage.graph)
    _check_file(folder / WEIGHTS_FILE, stage.weights)
    check_external_data(folder / GRAPH_FILE, stage.weights.size_bytes)
    return Shard(folder, manifest)


def _check_manifest(folder: Path, manifest: ShardManifest, stage: StageSpec) -> None:
    if manifest.stage_index != stage.stage_index:
        raise ShardError(
            f"{folder}: expected the shard of stage {stage.stage_index}, got stage "
            f"{manifest.stage_index}; the folders have been renamed: copy them again"
        )
    if manifest.inputs != stage.inputs or manifest.outputs != stage.outputs:
        raise ShardError(f"{folder}: its tensors are not those of the plan; copy the shard again")


def _check_file(path: Path, expected: ShardFile) -> None:
    if not path.is_file():
        raise ShardMissingError(path)
    try:
        actual = describe_file(path)
    except OSError as error:
        raise ShardError(
            f"{path}: cannot read it ({error.strerror or error}); check the file's owner and the "
            "card it lies on, or copy the shard again"
        ) from error
    if actual != expected:
        raise ShardHashMismatchError(path, expected.sha256, actual.sha256)
