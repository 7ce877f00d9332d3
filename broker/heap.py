"""Lets the C library keep the memory of one message for the next.

As it comes, glibc hands a freed block of some hundred KB back to the system at once, and each new
message faults its pages in again: half of the processor time of a message of 1.6 MB. So a process
that carries messages keeps a bounded amount. What a shard's loading has left is given back all the
same, at once: `stage/memory.py`.
"""

import ctypes
import sys
from functools import cache

KEPT_BYTES = 32 * 1024 * 1024
"""Free memory at the end of a heap that is not given back. At most as much as was in use at once:
several messages, and their copies on the way out."""
LARGE_BYTES = 8 * 1024 * 1024
"""Blocks from here on come from the system and go back to it, as most weights do."""
ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(LARGE_BYTES),
}
"""The same for a child process that is not ours, such as Mosquitto."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def keep_message_memory() -> bool:
    """Do so from now on, for the whole process; whether the C library can (glibc can)."""
    return set_thresholds(KEPT_BYTES, LARGE_BYTES)


def set_thresholds(kept_bytes: int, large_bytes: int) -> bool:
    """How much free memory a heap keeps at its end, and from which size on a block comes from the
    system and goes back to it; whether the C library can. Each holds for the whole process, and
    ends that glibc raises both by itself."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, kept_bytes)
    return bool(kept and mallopt(_M_MMAP_THRESHOLD, large_bytes))
