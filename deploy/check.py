"""What is wrong with a device, judged from what it says of itself. Pure.

The judgement of a Raspberry Pi's firmware word follows the table of ``vcgencmd get_throttled``.
"""

from enum import StrEnum
from typing import NamedTuple

from contract.command import Examination
from contract.frozen import FrozenModel
from contract.status import DeviceState, DeviceStatus
from deploy.inventory import Device

CLOCK_WARNING_S, CLOCK_PROBLEM_S = 1.0, 30.0
"""Traces of a batch are off by a second's clock error; certificates and logs by half a minute's."""
MEMORY_PROBLEM_BYTES = 64 * 1024**2
DISK_PROBLEM_BYTES, DISK_WARNING_BYTES = 128 * 1024**2, 1024**3
HOT_CELSIUS = 80.0  # where a Raspberry Pi begins to slow down
_PI = "raspberry-pi"
_EMULATING = ("GenuineIntel", "AuthenticAMD", "Intel", "AMD")


class Verdict(StrEnum):
    """How bad it is: a problem keeps the fleet from working as promised, a warning may."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(FrozenModel):
    """One thing looked at on one device. ``remedy`` is empty where all is well."""

    device: str
    what: str
    verdict: Verdict
    detail: str
    remedy: str = ""


class Answer(NamedTuple):
    """A device's examination, the clock's error in seconds (positive: it is ahead of us) and how
    exactly that is known."""

    examination: Examination
    clock_offset_s: float
    clock_uncertainty_s: float


def judge(
    device: Device, status: DeviceStatus | None, answer: Answer | None, our_version: str
) -> list[Finding]:
    """Everything there is to say of one device, the worst not first but in the order of repair."""
    if answer is None:
        return [_absent(device, status)]
    examination = answer.examination
    found = [
        _online(device, examination, our_version),
        _architecture(device, examination),
        _clock(device, answer),
        *_memory(device, examination),
        *_disk(device, examination),
        *_power(device, examination),
    ]
    return [
        Finding(device=device.name, what=what, verdict=verdict, detail=detail, remedy=remedy)
        for what, verdict, detail, remedy in found
    ]


_Found = tuple[str, Verdict, str, str]


def _absent(device: Device, status: DeviceStatus | None) -> Finding:
    look = (
        f"on {device.name} ({device.address}): `docker compose ps` and `docker compose logs stage`"
    )
    if status is None:
        detail = "it has never announced itself at this broker"
        remedy = (
            f"{look}; «exec format error» there means a 32-bit system: flash the 64-bit one; "
            "a word of certificates or «refuses user» that its folder is of another rendering: "
            "copy it again"
        )
    elif status.state is DeviceState.ONLINE:
        detail = "it is online and does not answer"
        remedy = f"its agent may be of another version or hang; {look}, then restart it"
    elif status.state is DeviceState.STOPPED:
        detail = "its agent was stopped"
        remedy = (
            f"`docker compose up -d` on {device.name}; if it still is not online then, {look}: "
            "a word of certificates or «refuses user» means that the folder there is of another "
            "rendering, copy it again"
        )
    else:
        detail = "the broker has lost it"
        remedy = f"is it on, and on the network? Then {look}"
    return Finding(
        device=device.name,
        what="online",
        verdict=Verdict.PROBLEM,
        detail=detail,
        remedy=remedy,
    )


def _online(device: Device, found: Examination, our_version: str) -> _Found:
    detail = f"shardline {found.shardline_version}, {found.engine} {found.engine_version}"
    if found.shardline_version != our_version:
        return (
            "online",
            Verdict.WARNING,
            f"{detail}; this is {our_version}",
            f"load the same image on {device.name} and on the planner's machine",
        )
    return "online", Verdict.OK, detail, ""


def _architecture(device: Device, found: Examination) -> _Found:
    expected = device.facts.machine
    detail = f"{found.machine}, {found.cores} cores, {found.board or found.processor or 'unknown'}"
    if found.machine != expected:
        return (
            "architecture",
            Verdict.PROBLEM,
            f"expected {expected} for a {device.kind}, got {detail}",
            f"correct its kind in fleet.yaml, or load the image for {expected} and flash a 64-bit "
            "system",
        )
    if found.machine == "aarch64" and found.processor and _is_emulated(found.processor):
        return (
            "architecture",
            Verdict.PROBLEM,
            f"an {found.machine} image on {found.processor}: emulated, many times slower",
            "load the image for this machine's own processor",
        )
    return "architecture", Verdict.OK, detail, ""


def _is_emulated(processor: str) -> bool:
    return any(maker in processor for maker in _EMULATING)


def _clock(device: Device, answer: Answer) -> _Found:
    offset, doubt = answer.clock_offset_s, answer.clock_uncertainty_s
    away = abs(offset) - doubt
    side = "ahead of" if offset > 0 else "behind"
    detail = f"{abs(offset):.2f} s {side} this machine (± {doubt:.2f} s)"
    remedy = (
        f"on {device.name}: `timedatectl` should say «System clock synchronized: yes»; a Pi has no "
        "clock of its own and needs a time server within reach (`sudo timedatectl set-ntp true`). "
        "If every device is off by as much, it is this machine's clock"
    )
    if away > CLOCK_PROBLEM_S:
        return "clock", Verdict.PROBLEM, detail, remedy
    if away > CLOCK_WARNING_S:
        return "clock", Verdict.WARNING, detail, remedy
    return "clock", Verdict.OK, detail, ""


def _memory(device: Device, found: Examination) -> list[_Found]:
    if not found.memory_controller:
        off = "cgroup_disable=memory" in found.kernel_command_line.split()
        why = ", its command line says cgroup_disable=memory" if off else ""
        return [
            (
                "memory limit",
                Verdict.PROBLEM,
                f"the kernel cannot limit memory{why}: Docker ignores mem_limit",
                f"on {device.name}, add `cgroup_enable=memory cgroup_memory=1` to the one line of "
                "/boot/firmware/cmdline.txt and reboot",
            ),
            _available(device, found, found.memory_available_bytes),
        ]
    limit = found.memory_limit_bytes
    if limit is None:
        limited: _Found = (
            "memory limit",
            Verdict.WARNING,
            "the container has none: a large shard can take the whole machine down",
            "use the compose file of the rendered folder, which sets mem_limit",
        )
        return [limited, _available(device, found, found.memory_available_bytes)]
    within = f"{limit / 1e6:,.0f} MB"
    if limit != device.stage_memory_bytes:
        limited = (
            "memory limit",
            Verdict.WARNING,
            f"{within}, fleet.yaml says {device.stage_memory_bytes / 1e6:,.0f} MB",
            "render again, copy the folder and run `docker compose up -d` there",
        )
    else:
        limited = ("memory limit", Verdict.OK, within, "")
    room = min(limit - (found.memory_used_bytes or 0), found.memory_available_bytes)
    return [limited, _available(device, found, room)]


def _available(device: Device, found: Examination, room: int) -> _Found:
    detail = f"{max(0, room) / 1e6:,.0f} MB free of {found.memory_total_bytes / 1e6:,.0f} MB"
    if room < MEMORY_PROBLEM_BYTES:
        return (
            "memory",
            Verdict.PROBLEM,
            f"{detail} for the stage: the next shard may not fit",
            f"stop what else runs on {device.name}, raise its `memory` in fleet.yaml, or plan more "
            "stages",
        )
    return "memory", Verdict.OK, detail, ""


def _disk(device: Device, found: Examination) -> list[_Found]:
    if not found.cache_writable:
        return [
            (
                "disk",
                Verdict.PROBLEM,
                f"{found.cache_dir} cannot be written: shards cannot be kept",
                f"on {device.name}, `docker compose down -v && docker compose up -d` makes the "
                "volume anew for the user in .env; if the card has become read-only, replace it",
            )
        ]
    if found.cache_free_bytes is None:
        return [("disk", Verdict.WARNING, f"{found.cache_dir}: free space not readable", "")]
    detail = f"{found.cache_free_bytes / 1e9:,.1f} GB free at {found.cache_dir}"
    remedy = f"make room on {device.name}: `docker image prune`, `sudo apt clean`, or a larger card"
    if found.cache_free_bytes < DISK_PROBLEM_BYTES:
        return [("disk", Verdict.PROBLEM, detail, remedy)]
    if found.cache_free_bytes < DISK_WARNING_BYTES:
        return [("disk", Verdict.WARNING, detail, remedy)]
    return [("disk", Verdict.OK, detail, "")]


def _power(device: Device, found: Examination) -> list[_Found]:
    word, hot = found.throttled, found.temperature_celsius
    degrees = "" if hot is None else f", {hot:.0f} °C"
    if word is None:
        if not device.kind.startswith(_PI):
            return []
        return [
            (
                "power",
                Verdict.WARNING,
                f"the firmware's word on voltage cannot be read{degrees}",
                f"on {device.name}, `vcgencmd get_throttled` should print throttled=0x0",
            )
        ]
    supply = "use the power supply made for this board and a short cable"
    cooling = "give it a heat sink, a fan, or more air"
    found_wrong: list[_Found] = []
    if word & 0x1:
        found_wrong.append(("power", Verdict.PROBLEM, "under-voltage now", supply))
    elif word & 0x1_0000:
        detail = "under-voltage since it was started"
        found_wrong.append(("power", Verdict.WARNING, detail, supply))
    if word & 0xE:
        detail = f"slowed down now{degrees} (get_throttled {word:#x})"
        found_wrong.append(("throttling", Verdict.PROBLEM, detail, f"{cooling}; {supply}"))
    elif word & 0xE_0000:
        detail = f"slowed down since it was started{degrees} (get_throttled {word:#x})"
        found_wrong.append(("throttling", Verdict.WARNING, detail, f"{cooling}; {supply}"))
    elif hot is not None and hot >= HOT_CELSIUS:
        found_wrong.append(("throttling", Verdict.WARNING, f"{hot:.0f} °C", cooling))
    return found_wrong or [("power", Verdict.OK, f"no under-voltage, no throttling{degrees}", "")]
