"""Writes rendered files, and never over a file that somebody else made or changed.

The rule: `rendered.sha256` lists the hash of every file as it was written. A file that is there may
be replaced if it still has that hash, or already is what it shall be; any other is left alone and
named, unless forced. `sha256sum -c rendered.sha256` says the same.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from contract.errors import SettingsError
from deploy.render import SECRET, Rendered, is_secret_folder

LIST_FILE = "rendered.sha256"
SECRET_FOLDER_MODE = 0o700
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the files, by their paths below the output folder."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    left_over: tuple[str, ...]
    """Written by an earlier rendering, no longer of the fleet. They are not deleted."""


def write(folder: Path, files: Mapping[PurePosixPath, Rendered], *, force: bool = False) -> Written:
    """Bring the folder to what ``files`` say; what is so already is not touched.

    Raises:
        SettingsError: a file there is not ours to replace, or the folder cannot be written.
    """
    try:
        return _write(folder, files, force)
    except OSError as error:
        raise SettingsError(
            f"{error.filename or folder}: cannot write it ({error.strerror}); "
            "name a folder that you may write with --out"
        ) from error


def _write(folder: Path, files: Mapping[PurePosixPath, Rendered], force: bool) -> Written:
    known = _read_list(folder / LIST_FILE)
    present = {path: _hash_of_file(folder / path) for path in files}
    wanted = {path: _hash(rendered.text.encode()) for path, rendered in files.items()}
    foreign = [
        str(path)
        for path, now in present.items()
        if now is not None and now not in (wanted[path], known.get(str(path)))
    ]
    if foreign and not force:
        more = "" if len(foreign) <= _NAMED else f" and {len(foreign) - _NAMED} more"
        raise SettingsError(
            f"{folder}: {', '.join(foreign[:_NAMED])}{more}: changed by hand, or not written by "
            "`shardline deploy render`; nothing was written. Move them away, put the change into "
            "fleet.yaml, or replace them with --force"
        )
    left_over = {
        path: digest
        for path, digest in known.items()
        if PurePosixPath(path) not in files and (folder / path).is_file()
    }
    written, unchanged = [], []
    for path, rendered in files.items():
        _make_folders(folder, path)
        target = folder / path
        if present[path] != wanted[path]:
            _replace(target, rendered)
            written.append(str(path))
            continue
        unchanged.append(str(path))
        if target.stat().st_mode & 0o777 != rendered.mode:
            target.chmod(rendered.mode)
    entries = left_over | {str(path): digest for path, digest in wanted.items()}
    text = "".join(f"{digest}  {path}\n" for path, digest in sorted(entries.items()))
    if _hash_of_file(folder / LIST_FILE) != _hash(text.encode()):
        _replace(folder / LIST_FILE, Rendered(text, SECRET))
    return Written(tuple(written), tuple(unchanged), tuple(sorted(left_over)))


def _make_folders(folder: Path, path: PurePosixPath) -> None:
    """The folders above a file; those with secrets are for their owner only."""
    folder.mkdir(parents=True, exist_ok=True)
    for above in reversed(path.parents[:-1]):
        target = folder / above
        target.mkdir(exist_ok=True)
        if is_secret_folder(above) and target.stat().st_mode & 0o777 != SECRET_FOLDER_MODE:
            target.chmod(SECRET_FOLDER_MODE)


def _replace(target: Path, rendered: Rendered) -> None:
    """Whole or not at all, and never readable for others in between."""
    descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(rendered.text)
            os.fchmod(handle.fileno(), rendered.mode)
        Path(partial).replace(target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _read_list(file: Path) -> dict[str, str]:
    """Hash by path. A line that is none is left out: its file then counts as somebody else's."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("  ") for line in lines)
    return {path: digest for digest, separator, path in pairs if separator and len(digest) == 64}


def _hash_of_file(file: Path) -> str | None:
    try:
        return _hash(file.read_bytes())
    except FileNotFoundError:
        return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
