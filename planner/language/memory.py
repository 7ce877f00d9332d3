"""How much memory this process has needed at its peak. Linux; elsewhere by getrusage."""

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most resident memory so far, in bytes.

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
