"""How much memory this process has needed at its peak, and how planning keeps that small."""

import resource
import sys
from pathlib import Path

from broker.heap import set_thresholds

LARGE_BYTES = 1024 * 1024
"""Freed blocks from here on go back to the system at once: matrices, one after another."""


def give_large_blocks_back() -> bool:
    """Do so from now on, for the whole process; whether the C library can (glibc can).

    As it comes, glibc raises that size with each larger block that is freed, up to 32 MB (and what
    it keeps at the end of a heap to twice that), and so keeps what matrices have left: a model of
    225 MB was planned with 97 to 134 MB more at the peak, as chance had it, and is with 68.
    """
    return set_thresholds(LARGE_BYTES, LARGE_BYTES)


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
