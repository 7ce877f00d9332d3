"""What the kernel says of another process."""

from pathlib import Path

import psutil


def resident(pid: int) -> tuple[float, float]:
    """Steady and peak resident memory in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return float(psutil.Process(pid).memory_info().rss), float(peak.split()[1]) * 1024
