"""`deploy check`: each thing that can be wrong with a device is found, said, and has a remedy."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.memory import MemoryBroker
from broker.transport import Callbacks, Connection, ConnectionSettings
from contract import topics
from contract.command import Examination
from contract.kind import Kind
from contract.status import DeviceState, DeviceStatus
from contract.version import SHARDLINE_VERSION
from deploy.check import Answer, Finding, Verdict, judge
from deploy.examine import Heard, examine_fleet
from deploy.inventory import Device
from stage.agent import StageAgent, StageSettings
from stage.machine import examine, has_memory_controller, memory_limit, throttled
from tests.conftest import eventually

MB, GB = 1024**2, 1024**3
PI = Device(name="pi-0", address="192.168.1.20", kind=Kind.RASPBERRY_PI_4, memory="512m")
HEALTHY = Examination(
    request_id="0" * 16,
    unix_time_s=0.0,
    shardline_version=SHARDLINE_VERSION,
    machine="aarch64",
    processor="CPU implementer: 0x41",
    board="Raspberry Pi 4 Model B Rev 1.5",
    kernel="6.6.51+rpt-rpi-v8",
    kernel_command_line="console=tty1 cgroup_enable=memory cgroup_memory=1",
    cores=4,
    engine="onnxruntime",
    engine_version="1.23.2",
    memory_total_bytes=4 * GB,
    memory_available_bytes=3 * GB,
    memory_limit_bytes=512 * MB,
    memory_used_bytes=90 * MB,
    memory_controller=True,
    cache_dir="/var/lib/shardline/cache",
    cache_total_bytes=32 * GB,
    cache_free_bytes=20 * GB,
    cache_writable=True,
    temperature_celsius=48.0,
    throttled=0,
)


def findings(device: Device = PI, offset_s: float = 0.0, **changes: object) -> list[Finding]:
    answer = Answer(HEALTHY.model_copy(update=changes), offset_s, 0.01)
    return judge(device, None, answer, SHARDLINE_VERSION)


def not_well(**changes: object) -> list[tuple[str, Verdict]]:
    found = findings(**changes)  # type: ignore[arg-type]
    assert all(finding.remedy for finding in found if finding.verdict is not Verdict.OK)
    assert all(not finding.remedy for finding in found if finding.verdict is Verdict.OK)
    return [(f.what, f.verdict) for f in found if f.verdict is not Verdict.OK]


def test_a_healthy_device_has_nothing_wrong_and_everything_was_looked_at() -> None:
    assert not_well() == []
    assert [finding.what for finding in findings()] == [
        *("online", "architecture", "clock", "memory limit", "memory", "disk", "power"),
    ]


PROBLEM, WARNING = Verdict.PROBLEM, Verdict.WARNING


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"shardline_version": "0.0.9"}, ("online", WARNING)),
        ({"machine": "x86_64"}, ("architecture", PROBLEM)),
        ({"machine": "armv7l"}, ("architecture", PROBLEM)),
        ({"processor": "vendor_id: GenuineIntel"}, ("architecture", PROBLEM)),
        ({"offset_s": 3600.0}, ("clock", PROBLEM)),
        ({"offset_s": -86_400.0 * 365}, ("clock", PROBLEM)),
        ({"offset_s": 2.0}, ("clock", WARNING)),
        ({"memory_controller": False}, ("memory limit", PROBLEM)),
        ({"memory_limit_bytes": None}, ("memory limit", WARNING)),
        ({"memory_limit_bytes": 256 * MB}, ("memory limit", WARNING)),
        ({"memory_used_bytes": 480 * MB}, ("memory", PROBLEM)),
        ({"memory_available_bytes": 30 * MB}, ("memory", PROBLEM)),
        ({"cache_writable": False}, ("disk", PROBLEM)),
        ({"cache_free_bytes": 50 * MB}, ("disk", PROBLEM)),
        ({"cache_free_bytes": 500 * MB}, ("disk", WARNING)),
        ({"throttled": 0x1}, ("power", PROBLEM)),
        ({"throttled": 0x10000}, ("power", WARNING)),
        ({"throttled": 0x4}, ("throttling", PROBLEM)),
        ({"throttled": 0x8}, ("throttling", PROBLEM)),
        ({"throttled": 0x80000}, ("throttling", WARNING)),
        ({"temperature_celsius": 82.0}, ("throttling", WARNING)),
        ({"throttled": None}, ("power", WARNING)),
    ],
    ids=str,
)
def test_each_thing_wrong_is_found_alone(
    changes: dict[str, object], expected: tuple[str, Verdict]
) -> None:
    assert not_well(**changes) == [expected]


def test_under_voltage_and_throttling_are_two_findings() -> None:
    assert not_well(throttled=0x5) == [("power", PROBLEM), ("throttling", PROBLEM)]


def test_another_board_has_no_firmware_word_to_miss() -> None:
    board = PI.model_copy(update={"kind": Kind.OTHER_ARM64})
    assert [f for f in findings(board, throttled=None) if f.verdict is not Verdict.OK] == []


def test_the_switched_off_memory_controller_names_the_kernels_words() -> None:
    line = "console=tty1 cgroup_disable=memory root=/dev/mmcblk0p2"
    [found] = [
        finding
        for finding in findings(memory_controller=False, kernel_command_line=line)
        if finding.verdict is PROBLEM
    ]
    assert "cgroup_disable=memory" in found.detail
    assert "cgroup_enable=memory cgroup_memory=1" in found.remedy


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (None, "never"),
        (DeviceState.ONLINE, "does not answer"),
        (DeviceState.STOPPED, "stopped"),
        (DeviceState.OFFLINE, "lost"),
    ],
)
def test_a_device_that_does_not_answer_is_a_problem_that_says_where_to_look(
    state: DeviceState | None, word: str
) -> None:
    status = state and DeviceStatus(device="pi-0", state=state, boot=1)
    [found] = judge(PI, status, None, SHARDLINE_VERSION)
    assert found.verdict is PROBLEM
    assert word in found.detail
    assert "pi-0" in found.remedy


# What a device finds out about itself


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_the_limit_is_read_from_either_kind_of_cgroup(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) == (None, None)
    assert not has_memory_controller(tmp_path)
    put(tmp_path, "one/sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n")
    put(tmp_path, "one/sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n")
    assert memory_limit(tmp_path / "one") == (268435456, 1000)
    assert has_memory_controller(tmp_path / "one")
    put(tmp_path, "one/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_limit(tmp_path / "one") == (None, 1000)
    put(tmp_path, "two/sys/fs/cgroup/memory.max", "max\n")
    put(tmp_path, "two/sys/fs/cgroup/memory.current", "1000\n")
    put(tmp_path, "two/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
    assert memory_limit(tmp_path / "two") == (None, 1000)
    assert has_memory_controller(tmp_path / "two")
    put(tmp_path, "two/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")
    assert not has_memory_controller(tmp_path / "two")


def test_pages_that_the_kernel_gives_back_are_not_used_memory(tmp_path: Path) -> None:
    for version, folder, prefix in ((1, "memory/", "total_"), (2, "", "")):
        cgroup = f"v{version}/sys/fs/cgroup/{folder}"
        put(
            tmp_path, cgroup + "memory.stat", f"{prefix}inactive_file 300\n{prefix}active_file 50\n"
        )
        names = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
        for name, value in zip(names, (1000, 400), strict=True):
            put(tmp_path, f"{cgroup}memory.{name}", f"{value}\n")
        assert memory_limit(tmp_path / f"v{version}") == (1000, 50)


PI_4_CPUINFO = """processor\t: 0
CPU implementer\t: 0x41

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.5
"""


def test_a_pi_says_which_board_it_is_even_where_docker_hides_the_firmware(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", PI_4_CPUINFO)
    found = examine("0" * 16, tmp_path, "onnxruntime", "1", SHARDLINE_VERSION, tmp_path)
    assert found.board == "Raspberry Pi 4 Model B Rev 1.5"
    assert found.processor == "0x41"


def test_a_pi_5s_firmware_and_a_voltage_sensor_are_read_too(tmp_path: Path) -> None:
    put(
        tmp_path,
        "five/sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled",
        "1\n",
    )
    assert throttled(tmp_path / "five") == 1
    put(tmp_path, "new/sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    put(tmp_path, "new/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
    assert throttled(tmp_path / "new") == 1


@pytest.mark.parametrize(
    ("text", "word"), [("0\n", 0), ("50005\n", 0x50005), ("", None), ("?", None)]
)
def test_the_firmwares_word_is_hexadecimal(tmp_path: Path, text: str, word: int | None) -> None:
    assert throttled(tmp_path) is None
    put(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", text)
    assert throttled(tmp_path) == word


def test_this_machine_can_be_examined(tmp_path: Path) -> None:
    found = examine("0" * 16, tmp_path / "cache", "onnxruntime", "1.23.2", SHARDLINE_VERSION)
    assert abs(found.unix_time_s - time.time()) < 5
    assert found.cache_writable
    assert found.cache_free_bytes
    assert found.memory_total_bytes > found.memory_available_bytes > 0


def test_a_cache_that_cannot_be_written_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = examine("0" * 16, tmp_path / "file" / "cache", "onnxruntime", "1", SHARDLINE_VERSION)
    assert not found.cache_writable


# Over messages


@pytest.fixture
def memory() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def agent(memory: MemoryBroker, tmp_path: Path) -> Iterator[StageAgent]:
    agent = StageAgent(StageSettings("pi-0", tmp_path), memory.connect)
    thread = threading.Thread(target=agent.run)
    thread.start()
    eventually(lambda: ask(memory, "pi-0")["pi-0"].answer is not None, "it listens")
    yield agent
    agent.stop()
    thread.join(timeout=10)


def ask(memory: MemoryBroker, *devices: str, timeout_s: float = 5.0) -> dict[str, Heard]:
    return examine_fleet(
        memory.connect, "default", "planner", devices, timeout_s, lambda _step, _share: None
    )


def test_a_running_device_answers_and_its_clock_is_compared(
    memory: MemoryBroker, agent: StageAgent
) -> None:
    answer = ask(memory, "pi-0")["pi-0"].answer
    assert answer is not None
    assert abs(answer.clock_offset_s) < 1.0


def test_a_device_that_is_away_is_waited_for_no_longer_than_asked(
    memory: MemoryBroker, agent: StageAgent
) -> None:
    started = time.monotonic()
    heard = ask(memory, "pi-0", "pi-9", timeout_s=2.0)
    assert time.monotonic() - started < 5
    assert heard["pi-9"] == Heard(None, None)
    assert heard["pi-0"].answer is not None
    assert heard["pi-0"].status is not None


@pytest.mark.parametrize("speaker", ["pi-8", "pi-0"])
def test_only_the_asked_device_can_answer_its_question(memory: MemoryBroker, speaker: str) -> None:
    """pi-8 answers a question that it overheard: the topic's sender does not fit."""
    connections: list[Connection] = []

    def answer(delivery: object) -> None:
        request_id = getattr(delivery, "payload").split(b'"request_id":"')[1][:16].decode()  # noqa: B009
        reply = HEALTHY.model_copy(update={"request_id": request_id, "unix_time_s": time.time()})
        topic = topics.answer_topic("default", "planner", speaker)
        connections[0].publish(topic, reply.model_dump_json().encode())
        connections[0].publish(topic, b"not a command")

    connections.append(
        memory.connect(ConnectionSettings(name=speaker), Callbacks(on_delivery=answer))
    )
    connections[0].subscribe(topics.command_filter("default", "pi-0"))
    heard = ask(memory, "pi-0", timeout_s=10.0 if speaker == "pi-0" else 1.0)
    assert (heard["pi-0"].answer is not None) == (speaker == "pi-0")


def test_a_device_answers_nobody_who_sends_nonsense_and_goes_on(
    memory: MemoryBroker, agent: StageAgent
) -> None:
    stranger = memory.connect(ConnectionSettings(name="x"), Callbacks(on_delivery=lambda _d: None))
    topic = topics.command_topic("default", "pi-0", "x")
    for payload in (b"", b"{}", b"\xff" * 1000, b"[" * 100_000, b'{"kind":"examination"}'):
        stranger.publish(topic, payload)
    eventually(lambda: ask(memory, "pi-0")["pi-0"].answer is not None, "it answers")
