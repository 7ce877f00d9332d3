"""What a device can tell of its machine: the facts that `shardline deploy check` judges.

Everything is read from files that a container sees of its host. What is missing is None: a board
without a sensor is not a sick one. Sources: the Raspberry Pi firmware's ``get_throttled``
(raspberrypi.com, "vcgencmd get_throttled"), cgroup v1 and v2 of the kernel's documentation.
"""

import platform
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from contract.command import Examination
from stage.cores import available_cores

NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 says "no limit" with a number near 2^63."""
_THROTTLED = "sys/devices/platform/soc*/soc*:firmware/get_throttled"
_VOLTAGE, _ALARM = "sys/class/hwmon/hwmon*", "in0_lcrit_alarm"
_MAX_TEXT = 64 * 1024
_MAX_COMMAND_LINE = 8192


def examine(
    request_id: str,
    cache_dir: Path,
    engine: str,
    engine_version: str,
    shardline_version: str,
    root: Path = Path("/"),
    threads: int | None = None,
) -> Examination:
    """Look at this machine. ``root`` is where /proc and /sys are looked for."""
    memory = psutil.virtual_memory()
    limit, used = memory_limit(root)
    total, free = _disk(cache_dir)
    return Examination(
        request_id=request_id,
        unix_time_s=time.time(),
        shardline_version=shardline_version,
        machine=platform.machine(),
        processor=_processor(root, "model name", "vendor_id", "CPU implementer"),
        # Docker hides /sys/firmware; on a Pi the last line of cpuinfo says the same.
        board=_text(root / "sys/firmware/devicetree/base/model") or _processor(root, "Model"),
        kernel=platform.release(),
        kernel_command_line=(_text(root / "proc/cmdline") or "")[:_MAX_COMMAND_LINE],
        cores=available_cores(),
        engine=engine,
        engine_version=engine_version,
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        memory_limit_bytes=limit,
        memory_used_bytes=used,
        memory_controller=has_memory_controller(root),
        cache_dir=str(cache_dir),
        cache_total_bytes=total,
        cache_free_bytes=free,
        cache_writable=_is_writable(cache_dir),
        temperature_celsius=temperature_celsius(),
        throttled=throttled(root),
        threads=threads,
        processors_limit=processors_limit(root),
    )


def memory_limit(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """The container's memory limit and what it uses now, bytes; None where there is none."""
    cgroup, kept = root / "sys/fs/cgroup", ("inactive_file", "active_file")
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if used is None:
        cgroup, kept = cgroup / "memory", ("total_inactive_file", "total_active_file")
        limit = _number(cgroup / "memory.limit_in_bytes")
        used = _number(cgroup / "memory.usage_in_bytes")
    if used is not None:
        words = [line.split() for line in (_text(cgroup / "memory.stat") or "").splitlines()]
        stat = {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}
        # Pages of files that were read or written: the kernel gives them back when asked.
        used = max(0, used - sum(stat.get(name, 0) for name in kept))
    return (limit if limit is not None and limit < NO_LIMIT_BYTES else None), used


def processors_limit(root: Path = Path("/")) -> float | None:
    """How many processors' time the container may use, None without a limit."""
    cgroup = root / "sys/fs/cgroup"
    words = (_text(cgroup / "cpu.max") or "").split()
    if len(words) != 2:
        files = (cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us")
        words = [_text(file) or "" for file in files]
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        return None  # "max", or -1
    return round(int(words[0]) / int(words[1]), 4)


def has_memory_controller(root: Path = Path("/")) -> bool:
    """Whether the kernel can limit memory at all: Raspberry Pi OS boots with that switched off."""
    controllers = _text(root / "sys/fs/cgroup/cgroup.controllers")
    if controllers is not None:
        return "memory" in controllers.split()
    return (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").exists()


def temperature_celsius() -> float | None:
    """The hottest sensor of the board, or None where it has none."""
    read = getattr(psutil, "sensors_temperatures", None)  # not on every platform
    sensors = read() if read is not None else {}
    values = [entry.current for entries in sensors.values() for entry in entries if entry.current]
    return max(values) if values else None


def throttled(root: Path = Path("/")) -> int | None:
    """The firmware's word on voltage and throttling, see :class:`contract.command.Examination`."""
    return read_throttled(throttled_files(root))


def throttled_files(root: Path = Path("/")) -> list[Path]:
    """Where this board's firmware tells; empty on a board that is no Raspberry Pi."""
    files = sorted(root.glob(_THROTTLED))
    for sensor in sorted(root.glob(_VOLTAGE)):  # what newer kernels have instead: bit 0 alone
        if _text(sensor / "name") == "rpi_volt":
            files.append(sensor / _ALARM)
    return files


def read_throttled(files: Iterable[Path]) -> int | None:
    """The word of the first of :func:`throttled_files` that has one."""
    for path in files:
        if path.name == _ALARM:
            return _number(path)
        try:
            return int(_text(path) or "", 16)
        except ValueError:
            continue
    return None


def _processor(root: Path, *keys: str) -> str | None:
    """The first of these entries in cpuinfo: under emulation, the emulating machine's."""
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    entries = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    return next((entries[key][:200] for key in keys if entries.get(key)), None)


def _disk(folder: Path) -> tuple[int | None, int | None]:
    for place in (folder, *folder.parents):  # the cache may not have been made yet
        try:
            usage = shutil.disk_usage(place)
        except OSError:
            continue
        return usage.total, usage.free
    return None, None


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEXT).decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return None
