"""Tells in one sentence what to do where a folder has no room for files, or cannot be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.errors import EnvironmentMissingError, PlanError


@contextmanager
def room_for_scratch(folder: Path, size_bytes: int) -> Iterator[None]:
    """For as long as temporary files of so many bytes are written below ``folder``.

    Raises:
        EnvironmentMissingError: the system refuses to write them.
    """
    try:
        yield
    except OSError as error:
        if not _is_about(error, folder):
            raise
        raise EnvironmentMissingError(
            f"{folder}: cannot write temporary files ({error.strerror or error}); "
            f"{_megabytes(size_bytes)} are needed there: set TMPDIR to a folder that you may "
            "write, on a disk with so much room (a tmpfs, as /tmp often is, is memory)"
        ) from error


@contextmanager
def room_for_plan(folder: Path, size_bytes: int) -> Iterator[None]:
    """For as long as a plan with shards of so many bytes is written below ``folder``.

    Raises:
        PlanError: the system refuses to write it.
    """
    try:
        yield
    except OSError as error:
        if not _is_about(error, folder):
            raise
        raise PlanError(
            f"{folder}: cannot write the plan ({error.strerror or error}); "
            f"{_megabytes(size_bytes)} are needed there: name a folder that you may write, on a "
            "disk with so much room, by --out"
        ) from error


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether it is ``folder``, its parents or its contents; a failed write names no file."""
    if error.filename is None:
        return True
    file, root = (Path(os.fsdecode(path)).resolve() for path in (error.filename, folder))
    return file.is_relative_to(root) or root.is_relative_to(file)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
