"""How much memory this process has needed at its peak, and how planning keeps that small."""

import ctypes
import resource
import sys
from functools import cache
from pathlib import Path

LARGE_BYTES = 1024 * 1024
"""Freed blocks from here on go back to the system at once: matrices, one after another."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def give_large_blocks_back() -> bool:
    """Do so from now on, for the whole process; whether the C library can (glibc can).

    As it comes, glibc raises that size with each larger block that is freed, up to 32 MB (and what
    it keeps at the end of a heap to twice that), and so keeps what matrices have left: a model of
    225 MB was planned with 97 to 134 MB more at the peak, as chance had it, and is with 68.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trimmed = mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES)
    return bool(trimmed and mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))


def peak_bytes() -> int:
    """The most resident memory so far, in bytes. Linux; elsewhere by getrusage.

    From /proc where there is one: what getrusage says begins with the parent's peak.
    """
    try:
        for line in Path("/proc/self", "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
