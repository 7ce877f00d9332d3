"""`shardline deploy check` against containers with one thing wrong with each."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.fleet import ContainerFleet, run, until

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
CACHE = "/var/lib/shardline"
UID = 1234  # another than the images' own: their volumes must be writable for it too


def service(**settings: Any) -> dict[str, Any]:
    return {"services": {"stage": settings}}


def mounted(source: Path, target: str) -> dict[str, Any]:
    return service(
        volumes=[{"type": "bind", "source": str(source), "target": target, "read_only": True}]
    )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerFleet]:
    folder = tmp_path_factory.mktemp("check")
    folder.chmod(0o755)
    assert FAKETIME.exists(), "the wrong clock comes from Debian's package libfaketime: install it"
    # What a Pi's kernel shows when it was started with the memory controller switched off.
    no_memory = folder / "cgroup"
    no_memory.mkdir()
    (no_memory / "cgroup.controllers").write_text("cpuset cpu io pids\n")
    for name, word in (("voltage", "50001"), ("hot", "e0008")):
        firmware = folder / name / "soc" / "soc:firmware"
        firmware.mkdir(parents=True)
        (firmware / "get_throttled").write_text(f"{word}\n")
    small = {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": f"size=100m,uid={UID}"}}
    clock = mounted(FAKETIME, "/opt/libfaketime.so.1")
    clock["services"]["stage"]["environment"] = {
        "LD_PRELOAD": "/opt/libfaketime.so.1",
        "FAKETIME": "-2h",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    faults = {
        "clock": clock,
        "no-controller": mounted(no_memory, "/sys/fs/cgroup"),
        "disk-full": {"volumes": {"cache": small}},
        "disk-locked": service(volumes=[f"cache:{CACHE}:ro"]),
        "voltage": mounted(folder / "voltage", "/sys/devices/platform"),
        "hot": mounted(folder / "hot", "/sys/devices/platform"),
    }
    devices = ("fine", *faults, "memory", "wrong-kind", "stopped", "killed", "absent")
    inventory = {
        "memory": {"memory": "100m"},
        "wrong-kind": {"kind": "raspberry-pi-4"},
    }
    with ContainerFleet(
        folder,
        devices,
        kind="other-amd64",
        arch="amd64",
        inventory=inventory,
        faults=faults,
        uid=UID,
    ) as fleet:
        fleet.start("hub", *(d for d in devices if d != "absent"))
        until(lambda: len(online(fleet)) >= len(devices) - 1, "all but one are online", 120)
        fleet.compose("stopped", "stop")
        pid = fleet.container("killed")
        run("docker", "update", "--restart=no", pid)
        fleet.kill("killed")
        yield fleet


def online(fleet: ContainerFleet) -> set[str]:
    done = subprocess.run(
        *(["docker", "logs", fleet.container("hub", "broker")],), capture_output=True, text=True
    )
    return {d for d in fleet.devices if f" as {d} (" in done.stderr}


@pytest.fixture(scope="module")
def findings(fleet: ContainerFleet) -> dict[str, dict[str, Any]]:
    """What is not well with each device: what -> finding. Asked as the quick start does."""
    done = fleet.from_the_root(
        *("run", "--rm", "-T", "planner", "deploy", "check", "--json", "--timeout", "10"),
        check=False,
        timeout_s=120,
    )
    assert done.returncode == 10, done.stderr
    found: dict[str, dict[str, Any]] = {device: {} for device in fleet.devices}
    for finding in json.loads(done.stdout):
        if finding["verdict"] != "ok":
            found[finding["device"]][finding["what"]] = finding
    return found


def test_a_device_with_nothing_wrong_has_no_finding(findings: dict[str, dict[str, Any]]) -> None:
    assert findings["fine"] == {}


@pytest.mark.parametrize(
    ("device", "what", "verdict", "words"),
    [
        ("clock", "clock", "problem", ("behind", "timedatectl")),
        ("no-controller", "memory limit", "problem", ("cgroup_enable=memory", "cmdline.txt")),
        ("disk-full", "disk", "problem", ("0.1 GB free",)),
        ("disk-locked", "disk", "problem", ("cannot be written",)),
        ("voltage", "power", "problem", ("under-voltage now", "power supply")),
        ("hot", "throttling", "problem", ("slowed down now", "heat sink")),
        ("memory", "memory", "problem", ("MB free", "memory")),
        ("wrong-kind", "architecture", "problem", ("expected aarch64", "x86_64")),
        ("stopped", "online", "problem", ("stopped", "docker compose up -d")),
        ("killed", "online", "problem", ("lost it",)),
        ("absent", "online", "problem", ("never announced", "exec format error")),
    ],
)
def test_each_thing_wrong_is_found_and_says_what_to_do(
    findings: dict[str, dict[str, Any]],
    device: str,
    what: str,
    verdict: str,
    words: tuple[str, ...],
) -> None:
    assert what in findings[device], findings[device]
    finding = findings[device][what]
    assert finding["verdict"] == verdict
    text = f"{finding['detail']} {finding['remedy']}".replace(",", "")
    assert all(word in text for word in words), text


def test_a_clock_s_error_is_told_as_exactly_as_it_says(findings: dict[str, dict[str, Any]]) -> None:
    detail = findings["clock"]["clock"]["detail"]
    found = re.fullmatch(r"([\d.]+) s behind this machine \(± ([\d.]+) s\)", detail)
    assert found, detail
    behind_s, doubt_s = float(found[1]), float(found[2])
    rounding_s = 0.01  # both are printed with two decimals
    assert abs(behind_s - 7200) <= doubt_s + rounding_s
    assert doubt_s < 1


def test_nothing_else_is_complained_about(findings: dict[str, dict[str, Any]]) -> None:
    allowed = {
        "voltage": {"throttling", "power"},  # 0x50001: also throttled since boot
        "wrong-kind": {"architecture", "power", "memory limit"},
    }
    for device, found in findings.items():
        assert len(found) <= 1 or set(found) <= allowed.get(device, set()), (device, found)


def test_a_person_gets_a_table_and_the_remedies(fleet: ContainerFleet) -> None:
    done = fleet.from_the_root(
        *("run", "--rm", "-T", "planner", "deploy", "check", "--timeout", "8"),
        check=False,
        timeout_s=120,
    )
    assert done.returncode == 10
    assert "DeviceUnfitError: problems with absent, clock," in done.stderr
    assert "voltage, power: use the power supply made for this board" in done.stdout
    assert "Traceback" not in done.stderr
