"""Files by which the harness asks a launched process for a fault at one exact point of its code.

The harness makes a file; the process that reaches the point takes it by renaming, so that a fault
strikes once, and whatever the process writes about it outlives its own SIGKILL.
"""

import contextlib
import os
import signal
import time
from pathlib import Path


class Triggers:
    """The files of one pipeline under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, name: str, text: str = "") -> None:
        """Ask for a fault, or tell of one."""
        (self.folder / name).write_text(text)

    def clear(self, name: str) -> None:
        """Ask no longer; harmless when nobody did."""
        (self.folder / name).unlink(missing_ok=True)

    def is_set(self, name: str) -> bool:
        """Whether somebody asks."""
        return os.path.exists(f"{self.folder}/{name}")  # noqa: PTH110 on a stage's hot path

    def take(self, name: str) -> bool:
        """Whether the fault was asked for; the first to ask this gets True."""
        try:
            os.rename(f"{self.folder}/{name}", f"{self.folder}/{name}.taken")  # noqa: PTH104
        except FileNotFoundError:
            return False
        return True

    def crash_at(self, point: str) -> None:
        """End this process as the kernel would, if the harness has asked for it here."""
        if self.take(f"crash.{point}"):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10)  # the signal is on its way

    def wait(self, name: str, timeout_s: float) -> bool:
        """Whether a file has come in time."""
        deadline = time.monotonic() + timeout_s
        while not self.is_set(name):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def forget_all(self) -> None:
        """Remove whatever a trial has left."""
        for file in self.folder.iterdir():
            if not file.name.startswith("computes."):
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()

    def tally(self, name: str) -> None:
        """Count one more of something."""
        with (self.folder / name).open("ab") as file:
            file.write(b".")

    def count(self, name: str) -> int:
        """How many were counted."""
        file = self.folder / name
        return file.stat().st_size if file.exists() else 0
