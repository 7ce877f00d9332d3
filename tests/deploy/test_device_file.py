"""Device files: what they mean for planning, and that a bad one is told with line and field."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from contract.described import DescribedFleet
from contract.errors import SettingsError
from contract.kind import Kind
from deploy.authority import open_store
from deploy.compose_file import COMPOSE_FILE, read_shipped
from deploy.device_file import DrawnBroker, DrawnDevice, load_device_file, parse_device_file
from deploy.fields import memory_bytes
from deploy.fleet_file import parse_fleet
from deploy.kinds import KINDS
from deploy.link import delay_ms, rate_bytes_per_s
from deploy.render import Inputs, render
from tests.deploy.fleets import FLEET, SEPARATE_BROKER

HERE = Path("drawers")
SHORT = """\
devices:
  - {name: pi-a, kind: raspberry-pi-4}
  - name: pi-b
    kind: raspberry-pi-zero-2-w
    memory: 200m
    link: {up: 40 Mbit/s, down: 5 MB/s, latency: 3 ms}
  - {name: box, kind: other-amd64, speed: 2.0, count: 3}
broker: {link: 1 Gbit/s, kind: raspberry-pi-5}
"""
ONE = "devices:\n  - name: pi-a\n    kind: raspberry-pi-4\n"
PLANNING = """\
    speed: 1.2
    cores: 3
    link: {up: 200 Mbit/s, latency: 500 us}
"""


def parse(text: str) -> DescribedFleet:
    return parse_device_file(text, "my.yaml", HERE)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("8 bit/s", 1.0),
        ("100 kbit/s", 12_500.0),
        ("100 Mbit/s", 12.5e6),
        ("940 Mbit/s", 117.5e6),
        ("2.5Gbit/s", 312.5e6),
        ("7 B/s", 7.0),
        ("7 kB/s", 7e3),
        ("11 MB/s", 11e6),
        ("0.5 GB/s", 5e8),
    ],
)
def test_a_rate_is_decimal_and_in_the_unit_that_it_names(text: str, bytes_per_s: float) -> None:
    assert rate_bytes_per_s(text) == pytest.approx(bytes_per_s)


@pytest.mark.parametrize(
    "text",
    [
        *("", "100", "Mbit/s", "100 Mb/s", "100 MBit/s", "100 MiB/s", "0 Mbit/s", "-1 Mbit/s"),
        *("1e3 B/s", "1,5 MB/s", "100  MB/s", " 1 MB/s", "1 MB/s\n", "٣ MB/s", "1 ms"),
    ],
)
def test_what_may_be_read_in_two_ways_is_no_rate(text: str) -> None:
    with pytest.raises(SettingsError, match="100 Mbit/s"):
        rate_bytes_per_s(text)


def test_a_latency_may_be_nothing_but_needs_its_unit() -> None:
    assert [delay_ms(text) for text in ("400 us", "0.4 ms", "0 ms", "1 s")] == [0.4, 0.4, 0, 1000]
    for text in ("0.4", "4 min", "-1 ms", "1 MB/s"):
        with pytest.raises(SettingsError, match=r"0\.4 ms"):
            delay_ms(text)


def test_a_short_file_needs_neither_addresses_nor_users() -> None:
    fleet = parse(SHORT)
    first, second, box, *_ = fleet.devices
    assert (first.kind, first.speed, first.up_bytes_per_s) == (Kind.RASPBERRY_PI_4, 1.0, None)
    assert first.memory_bytes == memory_bytes(KINDS[Kind.RASPBERRY_PI_4].stage_memory)
    assert second.memory_bytes == 200 * 1024**2
    assert (second.up_bytes_per_s, second.down_bytes_per_s) == (5e6, 5e6)
    assert second.latency_ms == 3.0
    assert box.speed == 2.0
    assert (fleet.broker_bytes_per_s, fleet.broker_kind) == (125e6, Kind.RASPBERRY_PI_5)


def test_a_count_makes_devices_that_are_alike_but_for_their_names() -> None:
    boxes = parse(SHORT).devices[2:]
    assert [device.name for device in boxes] == ["box-0", "box-1", "box-2"]
    assert len({device.model_copy(update={"name": ""}) for device in boxes}) == 1


def test_one_text_is_a_link_in_both_directions() -> None:
    (device,) = parse(ONE + "    link: 11 MB/s\n").devices
    assert (device.up_bytes_per_s, device.down_bytes_per_s) == (11e6, 11e6)
    assert device.latency_ms is None


def test_a_profile_lies_beside_the_file_that_names_it() -> None:
    (device,) = parse(ONE + "    profile: measured.json\n").devices
    assert device.profile == str(HERE / "measured.json")
    (device,) = parse(ONE + "    profile: /measured.json\n").devices
    assert device.profile == "/measured.json"


def test_a_fleet_file_is_read_as_it_is_and_says_more_if_it_likes() -> None:
    plain = parse(FLEET)
    assert [d.name for d in plain.devices] == ["pi-0", "pi-1"]
    assert plain.devices[1].memory_bytes == 200 * 1024**2
    assert (plain.broker_bytes_per_s, plain.broker_kind) == (None, Kind.RASPBERRY_PI_4)
    more = FLEET.replace("    kind: raspberry-pi-4\n", "    kind: raspberry-pi-4\n" + PLANNING)
    device = parse(more).devices[0]
    assert (device.speed, device.cores) == (1.2, 3)
    assert (device.up_bytes_per_s, device.down_bytes_per_s) == (25e6, None)
    assert device.latency_ms == 0.5


def test_a_broker_on_a_device_has_the_link_of_that_device_unless_it_says_its_own() -> None:
    slow = FLEET.replace(
        "raspberry-pi-4\n", "raspberry-pi-4\n    link: {up: 9 MB/s, down: 7 MB/s}\n"
    )
    assert parse(slow).broker_bytes_per_s == 7e6
    assert parse(slow.replace("host: pi-0", "host: pi-0\n  link: 2 MB/s")).broker_bytes_per_s == 2e6
    hub = SEPARATE_BROKER.replace("port: 1999", "kind: other-amd64")
    assert parse(hub).broker_kind == Kind.OTHER_AMD64
    assert parse(SEPARATE_BROKER).broker_kind is None


def test_what_is_for_planning_changes_nothing_that_is_rendered(tmp_path: Path) -> None:
    more = FLEET.replace("    kind: raspberry-pi-4\n", "    kind: raspberry-pi-4\n" + PLANNING)
    more = more.replace("    memory: 200m\n", "    memory: 200m\n    profile: p.json\n")
    more = more.replace("host: pi-0\n", "host: pi-0\n  link: 1 Gbit/s\n")
    folders = []
    compose, now = read_shipped(COMPOSE_FILE), datetime.now(UTC)
    for text in (FLEET, more):
        fleet = parse_fleet(text, "f")
        with open_store(tmp_path, fleet, now) as at_work:
            certificates = at_work.certificates()
        folders.append(render(Inputs(fleet, certificates, {}, "", compose, {}, (1000, 1000))))
    assert folders[0] == folders[1]


def test_described_devices_cross_to_the_planner_as_json() -> None:
    for text in (SHORT, FLEET, ONE + "    profile: measured.json\n"):
        fleet = parse(text)
        assert DescribedFleet.model_validate_json(fleet.model_dump_json()) == fleet


TWICE = ONE + "  - {name: pi, kind: other-arm64, count: 1}\n  - {name: pi-0, kind: other-arm64}\n"
OTHER = ONE.replace("raspberry-pi-4", "other-arm64")
BAD = [
    (ONE + "    link: 100 Mb/s\n", 4, "devices.0.link", "100 Mbit/s"),
    (ONE + "    link: 100\n", 4, "devices.0.link", "up, down, latency"),
    (ONE + "    link: [1 MB/s]\n", 4, "devices.0.link", "up, down, latency"),
    (ONE + "    link:\n      up: 1 MB/s\n      down: fast\n", 6, "devices.0.link.down", "11 MB/s"),
    (ONE + "    link:\n      latency: 3\n", 5, "devices.0.link.latency", "in quotes"),
    (ONE + "    link:\n      latency: 3 min\n", 5, "devices.0.link.latency", "0.4 ms"),
    (ONE + "    link:\n      speed: 1 MB/s\n", 5, "devices.0.link.speed", "correct its name"),
    (ONE + "    speed: 0\n", 4, "devices.0.speed", "greater than 0"),
    (ONE + "    speed: .inf\n", 4, "devices.0.speed", "finite"),
    (ONE + "    speed: fast\n", 4, "devices.0.speed", "docs/planning.md"),
    (ONE + "    cores: 0\n", 4, "devices.0.cores", "greater than or equal to 1"),
    (ONE + "    cores: 8\n", 4, "devices.0.cores", "has 4 cores"),
    (OTHER + "    cores: 2\n", 4, "devices.0.cores", "with `speed`"),
    (ONE + "    speed: 2\n    profile: p.json\n", 5, "devices.0.profile", "`speed`"),
    (ONE + "    cores: 2\n    profile: p.json\n", 5, "devices.0.profile", "`cores`"),
    (ONE + "    count: 0\n", 4, "devices.0.count", "greater than or equal to 1"),
    (ONE + "    count: 5000\n", 4, "devices.0.count", "less than or equal to 1000"),
    (ONE + "  - name: pi-a\n    kind: raspberry-pi-5\n", 4, "devices.1.name", "by devices.0"),
    (TWICE, 5, "devices.2.name", "'pi-0' is taken by devices.1"),
    (ONE.replace("pi-a", "p" * 63) + "    count: 2\n", 2, "devices.0.name", "1 to 63 letters"),
    (ONE.replace("    kind: raspberry-pi-4\n", ""), 2, "devices.0.kind", "docs/planning.md"),
    (ONE + "    user: pi\n", 4, "devices.0.user", "correct its name"),
    (ONE + "broker:\n  link: slow\n", 5, "broker.link", "100 Mbit/s"),
    (ONE + "broker:\n  link: {latency: 1 ms}\n", 5, "broker.link.latency", "no such field"),
    (ONE + "clients: [a]\n", 4, "clients", "correct its name"),
    ("devices: []\n", 1, "devices", "at least 1"),
    ("broker: {link: 1 GB/s}\n", 1, "devices", "add it"),
    # with the words of a fleet.yaml, once it has what only deployment needs
    (ONE + "    address: 10.0.0.1\n", 1, "broker", "docs/deploy.md"),
    (ONE + "broker: {host: pi-a}\n", 2, "devices.0.address", "docs/deploy.md"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "field", "remedy"), BAD, ids=lambda value: str(value)[-40:]
)
def test_a_bad_field_is_told_with_its_line_and_a_remedy(
    text: str, line: int, field: str, remedy: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"my.yaml line {line}, {field}: "), message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "docs/planning.md"]),
        ("devices: [\n", ["line 2", "no YAML"]),
        (ONE + "    kind: raspberry-pi-5\n", ["line 4", "`kind`", "line 3"]),
        ("devices: &a []\nbroker: *a\n", ["line 2", "alias"]),
    ],
)
def test_what_is_no_device_file_at_all_is_told(text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    for word in ("my.yaml", *words):
        assert word in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"docs/planning\.md"):
        load_device_file(tmp_path / "no.yaml")


def test_the_drawer_that_is_shipped_is_read() -> None:
    fleet = load_device_file(Path(__file__).parents[2] / "examples" / "fleets" / "drawer.yaml")
    assert [device.kind for device in fleet.devices] == [
        Kind.RASPBERRY_PI_5,
        Kind.RASPBERRY_PI_4,
        Kind.RASPBERRY_PI_4,
        Kind.RASPBERRY_PI_3B_PLUS,
        Kind.RASPBERRY_PI_ZERO_2_W,
    ]
    assert len({device.name for device in fleet.devices}) == 5


def test_the_page_shows_the_drawer_as_it_is_shipped_and_names_every_field() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "planning.md").read_text()
    lines = (root / "examples" / "fleets" / "drawer.yaml").read_text().splitlines(keepends=True)
    shipped = "".join(line for line in lines if not line.startswith("#")).lstrip("\n")
    assert f"```yaml\n{shipped}```" in page
    for name in DrawnDevice.model_fields:
        assert f"`devices[].{name}`" in page
    for name in DrawnBroker.model_fields:
        assert f"`broker.{name}`" in page
