"""Times that were measured before, kept in the user's cache folder as one JSON file each.

What they depend on is their key: the model, the kind of device, its engine, its threads, the batch
size. Links are not among them: they belong to a device and a place, and are always measured.
"""

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from contract.frozen import FrozenModel, explain
from contract.profile import BatchTimings

MAX_FILE_BYTES = 4 * 1024 * 1024

log = logging.getLogger(__name__)


class TimingsKey(FrozenModel):
    """What times depend on. ``engine`` with its version."""

    digest: str
    kind: str
    engine: str
    threads: int
    batch_size: int

    @property
    def file_name(self) -> str:
        """A hash: a kind of device may have any character in its name."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32] + ".json"


class KindTimings(FrozenModel):
    """One kind of device, one batch size: fields as in :class:`contract.profile.DeviceProfile`.

    ``measured_on`` is the device that was measured for its kind.
    """

    format_version: Literal[1] = 1
    key: TimingsKey
    measured_on: str
    timings: BatchTimings
    base_bytes: int = Field(ge=0)
    packing_factor: float = Field(ge=1)
    unpacked_factor: float | None = Field(ge=1)
    activation_bytes: int | None = Field(ge=0)
    sustained_share: float | None = Field(gt=0)
    temperature_before_celsius: float | None
    temperature_after_celsius: float | None
    throttled: int | None = Field(ge=0)
    busy: bool
    time_unix_s: float


class ProfileCache:
    """Files of :class:`KindTimings` in one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: by default `shardline/profiles` in the user's cache folder (XDG)."""
        self.folder = folder or default_folder()

    def get(self, key: TimingsKey) -> KindTimings | None:
        """What was measured under this key. A file that cannot be read counts as none."""
        path = self.folder / key.file_name
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError("too large")
            kept = KindTimings.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            log.warning("%s: ignored, it will be measured again (%s)", path, explain(error))
            return None
        except (OSError, ValueError) as error:
            log.warning("%s: ignored, it will be measured again (%s)", path, error)
            return None
        if kept.key != key:
            log.warning("%s: ignored, it tells of something else", path)
            return None
        return kept

    def put(self, timings: KindTimings) -> None:
        """Keep these. A folder that cannot be written costs a warning, and no profile."""
        path = self.folder / timings.key.file_name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as file:
                file.write(timings.model_dump_json(indent=1))
            Path(file.name).replace(path)
        except OSError as error:
            log.warning("%s: times are not kept (%s)", path, error.strerror or error)


def default_folder() -> Path:
    """By the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "shardline" / "profiles"
