"""The device's store of shard files, by content: a file is kept under its sha256.

    <root>/blobs/<sha256>                    whole files, verified when they were completed
    <root>/partial/<sha256>                  the beginning of a file that is on its way
    <root>/stages/<plan_id>/stage-<n>/       a shard: hard links to blobs, and its manifest

Two plans that share a stage share its files, and a plan that returns is there at once. Names are
hashes that were checked to be hashes: nothing that a message says becomes a path.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from contract.errors import ShardError, ShardHashMismatchError, ShardMissingError
from contract.plan import Plan, ShardFile
from shards.manifest import GRAPH_FILE, WEIGHTS_FILE, ShardManifest, load_manifest
from shards.writer import atomic_folder, describe_file, write_manifest

SPARE_BYTES = 64 * 1024 * 1024
"""Left free on the disk, for the logs and for the system to go on."""

log = logging.getLogger(__name__)


class ShardCache:
    """One device's cache; one process uses it at a time."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """``limit_bytes``: how much the finished files may take together."""
        self._lock = threading.RLock()  # one thread fetches and evicts, another loads
        self.root, self._limit_bytes = root, limit_bytes
        self._blobs, self._partial, self._stages = (
            root / "blobs",
            root / "partial",
            root / "stages",
        )

    def has(self, file: ShardFile) -> bool:
        """Whether the whole file is here. Its bytes are verified again whenever it is loaded."""
        try:
            return self._blob(file).stat().st_size == file.size_bytes
        except OSError:
            return False

    def partial(self, file: ShardFile) -> Path:
        """Where the beginning of a file is kept until it is whole. The folder exists.

        Raises:
            ShardError: the folder cannot be made.
        """
        self._make(self._partial)
        return self._partial / file.sha256

    def keep(self, file: ShardFile) -> None:
        """The partial file is whole and verified: move it among the blobs."""
        with self._lock:
            self._make(self._blobs)
            self.partial(file).replace(self._blob(file))

    def forget(self, file: ShardFile) -> None:
        """Drop a file that turned out to be damaged, so that it is fetched anew."""
        with self._lock:
            self._drop_stages_of(self._blob(file))
            self._blob(file).unlink(missing_ok=True)
            self.partial(file).unlink(missing_ok=True)

    def copy_out(self, file: ShardFile, target: Path) -> None:
        """A hard link to a whole file, or a copy of it, outside the cache's own folders.

        Raises:
            ShardMissingError: it is not in the cache.
            ShardHashMismatchError: it is damaged; it was thrown out.
        """
        with self._lock:
            if not self.has(file):
                raise ShardMissingError(self._blob(file))
            actual = describe_file(self._blob(file)).sha256
            if actual != file.sha256:
                self.forget(file)
                raise ShardHashMismatchError(self._blob(file), file.sha256, actual)
            _link(self._blob(file), target)

    def find_shard(self, plan: Plan, stage_index: int) -> Path:
        """The stage's folder, made of hard links to the blobs.

        Raises:
            ShardMissingError: a file is not in the cache.
            ShardError: the folder cannot be written.
        """
        with self._lock:
            return self._find_shard(plan, stage_index)

    def _find_shard(self, plan: Plan, stage_index: int) -> Path:
        stage = plan.stages[stage_index]
        for file in (stage.graph, stage.weights):
            if not self.has(file):
                raise ShardMissingError(self._blob(file))
        folder = self._stages / plan.plan_id / stage.folder
        try:
            with atomic_folder(folder) as partial:
                for name, file in ((GRAPH_FILE, stage.graph), (WEIGHTS_FILE, stage.weights)):
                    _link(self._blob(file), partial / name)
                write_manifest(
                    partial,
                    ShardManifest(
                        plan_id=plan.plan_id,
                        stage_index=stage_index,
                        graph=stage.graph,
                        weights=stage.weights,
                        inputs=stage.inputs,
                        outputs=stage.outputs,
                        verified_with=plan.verified_with,
                    ),
                )
        except OSError as error:
            raise _unusable(folder, error) from error
        for file in (stage.graph, stage.weights):
            os.utime(self._blob(file))  # used now: the last to be thrown out
        return folder

    def make_room(
        self, files: Collection[ShardFile], in_use: Callable[[], Collection[str]] = tuple
    ) -> None:
        """Throw out what was not used for longest until ``files`` fit, within limit and disk.

        Args:
            files: what is about to be fetched; what is here already needs no room.
            in_use: tells the sha256 of files that must stay.

        Raises:
            ShardError: they do not fit even so; says what is needed and what there is.
        """
        with self._lock:
            self._make_room(files, in_use())

    def _make_room(self, files: Collection[ShardFile], in_use: Collection[str]) -> None:
        self._make(self._blobs)
        needed = sum(self._missing_bytes(file) for file in files)
        if self._fits(needed):
            return
        staying = {file.sha256 for file in files} | set(in_use)
        self._drop_partials(keep=staying)
        blobs = sorted(
            (b for b in self._blobs.iterdir() if b.name not in staying),
            key=lambda blob: blob.stat().st_mtime,
        )
        # What can never fit must not cost what is here.
        if not self._fits(needed, freed=sum(blob.stat().st_size for blob in blobs)):
            free = shutil.disk_usage(self.root).free
            raise ShardError(
                f"{self.root}: needs {needed / 1e6:,.1f} MB for a shard, has "
                f"{max(0, free - SPARE_BYTES) / 1e6:,.1f} MB free (beyond {SPARE_BYTES / 1e6:.0f} "
                f"MB that stay) and a limit of {self._limit_bytes / 1e6:,.0f} MB; make room on "
                "this device, raise --cache-limit, or plan more stages"
            )
        while not self._fits(needed) and blobs:
            oldest = blobs.pop(0)
            log.info("cache: dropping %s", oldest.name)
            self._drop_stages_of(oldest)
            oldest.unlink()

    def _fits(self, needed: int, freed: int = 0) -> bool:
        used = sum(blob.stat().st_size for blob in self._blobs.iterdir())
        free = shutil.disk_usage(self.root).free
        return needed == 0 or (
            used - freed + needed <= self._limit_bytes and needed + SPARE_BYTES <= free + freed
        )

    def _missing_bytes(self, file: ShardFile) -> int:
        if self.has(file):
            return 0
        partial = self._partial / file.sha256
        return file.size_bytes - (partial.stat().st_size if partial.exists() else 0)

    def _drop_partials(self, keep: Collection[str]) -> None:
        if self._partial.is_dir():
            for partial in self._partial.iterdir():
                if partial.name not in keep:
                    partial.unlink()

    def _drop_stages_of(self, blob: Path) -> None:
        """A hard link keeps the bytes on the disk: the folders that use the blob must go too."""
        for folder in self._stages.glob("*/stage-*"):
            try:
                manifest = load_manifest(folder)
            except ShardError:
                shutil.rmtree(folder)  # nobody can use it
                continue
            if blob.name in (manifest.graph.sha256, manifest.weights.sha256):
                shutil.rmtree(folder)

    def _blob(self, file: ShardFile) -> Path:
        return self._blobs / file.sha256

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error) from error


def _link(blob: Path, target: Path) -> None:
    try:
        target.hardlink_to(blob)
    except OSError:  # a file system without hard links, such as a FAT stick
        shutil.copyfile(blob, target)


def _unusable(path: Path, error: OSError) -> ShardError:
    return ShardError(
        f"{path}: cannot write it ({error.strerror or error}); --cache must name a folder that "
        "this user may write (in a container: the volume at /var/lib/shardline)"
    )
