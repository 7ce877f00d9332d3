"""Gives memory back to the system after a shard was loaded or dropped.

While it loads, onnxruntime makes and frees copies of the weights; glibc keeps what was freed. On a
board with 512 MB that matters: a session alone held 150 MB instead of 166 for half of ResNet50, and
195 instead of 228 for all of it. bench/memory.py measures the whole stage process.
"""

import ctypes
import gc
import sys


def release_free_memory() -> None:
    """Hand freed heap pages back (glibc's malloc_trim); does nothing on other C libraries."""
    gc.collect()
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return  # musl and others return pages by themselves
