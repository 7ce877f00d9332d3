"""A temporary folder that lives exactly as long as the object that owns it.

Weights are handed from step to step as files, so that each step maps them instead of copying them.
"""

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from contract.errors import EnvironmentMissingError
from planner.room import room_for_scratch
from shards.writer import ByteRange, write_arrays


class ScratchFolder:
    """Deleted with its contents when the object is collected, or when the process ends.

    Arrays mapped from a file in it stay valid after that: the file only loses its name.
    """

    def __init__(self) -> None:
        """
        Raises:
            EnvironmentMissingError: no folder can be made where temporary files belong.
        """
        try:
            self.path = Path(tempfile.mkdtemp(prefix="shardline-planner-"))
        except OSError as error:
            raise EnvironmentMissingError(
                f"no folder for temporary files can be made ({error.strerror or error}); set "
                "TMPDIR to a folder on a disk with room for the model's weights"
            ) from error
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def writing(self, size_bytes: int) -> AbstractContextManager[None]:
        """For as long as files of so many bytes are written to it: see planner/room.py.

        The error names the folder that it was made in, which is what TMPDIR changes.
        """
        return room_for_scratch(self.path.parent, size_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of the files in it."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def write_weights(
        self, file: Path, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, ByteRange]:
        """Write ``arrays`` to a safetensors file in this folder; where each of them lies.

        Raises:
            EnvironmentMissingError: there is no room for them.
        """
        with self.writing(sum(array.nbytes for array in arrays.values())):
            file.parent.mkdir(exist_ok=True)
            return write_arrays(file, arrays)
