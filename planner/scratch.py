"""A temporary folder that lives exactly as long as the object that owns it.

Weights are handed from step to step as files, so that each step maps them instead of copying them.
"""

import shutil
import tempfile
import weakref
from pathlib import Path


class ScratchFolder:
    """Deleted with its contents when the object is collected, or when the process ends.

    Arrays mapped from a file in it stay valid after that: the file only loses its name.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="shardline-planner-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
