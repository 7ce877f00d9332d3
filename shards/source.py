"""The other end of a transfer: answers requests for the files of a plan, and of nothing else."""

from collections.abc import Mapping
from pathlib import Path

from contract.blob import BlobChunk, BlobRefusal, BlobRequest
from contract.errors import ShardMissingError
from contract.plan import Plan
from shards.manifest import GRAPH_FILE, WEIGHTS_FILE


class ShardSource:
    """The files of one built plan, by hash. Thread-safe: it keeps no state between requests."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def answer(self, request: BlobRequest) -> BlobChunk | BlobRefusal:
        """The bytes asked for, or why not. A hash that is not of this plan names no file at all."""
        path = self._files.get(request.sha256)
        if path is None:
            return self._refuse(request, "not a file of the plan that is being published")
        try:
            with path.open("rb") as file:
                file.seek(request.offset)
                data = file.read(request.length)
        except OSError as error:
            return self._refuse(request, f"{path.name}: {error.strerror or error}")
        if not data:
            return self._refuse(request, f"{path.name} has no byte at {request.offset:,}")
        return BlobChunk(request.sha256, request.offset, data)

    @staticmethod
    def _refuse(request: BlobRequest, detail: str) -> BlobRefusal:
        return BlobRefusal(sha256=request.sha256, detail=detail[:500])


def shard_source(plan: Plan, folder: Path) -> ShardSource:
    """The shards of a plan in its folder.

    Raises:
        ShardMissingError: a file is not there.
    """
    files = {}
    for stage in plan.stages:
        for name, file in ((GRAPH_FILE, stage.graph), (WEIGHTS_FILE, stage.weights)):
            path = folder / stage.folder / name
            if not path.is_file():
                raise ShardMissingError(path)
            files[file.sha256] = path
    return ShardSource(files)
