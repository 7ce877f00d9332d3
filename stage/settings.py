"""How a device agent runs."""

from dataclasses import dataclass
from pathlib import Path

from contract import topics


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How a device agent runs.

    ``receive_maximum``: one batch computing, one being published, one ready. ``shards_dir`` is a
    folder of shards that somebody copied here, ``cache_dir`` holds those that were fetched,
    ``heartbeat`` is the file that the health check reads. ``remember_crashes``: write down, in the
    cache folder, which batch is being computed, to refuse one that kills this process again.
    """

    device: str
    shards_dir: Path
    cluster: str = topics.DEFAULT_CLUSTER
    engine: str = "onnxruntime"
    threads: int = 1
    prepack: bool = True
    receive_maximum: int = 3
    connect_timeout_s: float | None = None
    cache_dir: Path | None = None
    cache_limit_bytes: int = 4_000_000_000
    heartbeat: Path | None = None
    remember_crashes: bool = True

    @property
    def cache_folder(self) -> Path:
        """``cache_dir``, or a hidden folder beside the copied shards."""
        return self.cache_dir or self.shards_dir / ".cache"
