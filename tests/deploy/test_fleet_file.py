"""fleet.yaml: what a good one means, and that a bad one is told with line, field and remedy."""

import re
from pathlib import Path

import pytest

from contract.errors import SettingsError
from contract.kind import Kind
from deploy.example import NewMachine, example_fleet, numbered_machines
from deploy.fields import PLACEHOLDER, memory_bytes
from deploy.fleet_file import load_fleet, parse_fleet
from deploy.inventory import host_and_port
from deploy.kinds import KINDS
from tests.deploy.fleets import FLEET, SEPARATE_BROKER

SHORT = """\
broker:
  host: pi-0
devices:
  - name: pi-0
    address: 192.168.1.20
    kind: raspberry-pi-4
"""


def test_a_short_file_has_sensible_defaults() -> None:
    fleet = parse_fleet(SHORT, "f")
    assert fleet.cluster == "default"
    assert (fleet.broker_address, fleet.broker.port) == ("192.168.1.20", 8883)
    assert fleet.users == ("pi-0", "planner", "client", "observer", "health")
    (device,) = fleet.devices
    assert (device.user, device.uid, device.gid) == ("pi", 1000, 1000)
    assert device.stage_memory == KINDS[Kind.RASPBERRY_PI_4].stage_memory
    (machine,) = fleet.machines
    assert machine.runs_broker


def test_a_full_file_means_what_it_says() -> None:
    fleet = parse_fleet(FLEET, "f")
    second = fleet.devices[1]
    assert (second.user, second.uid, second.gid) == ("maker", 1001, 1002)
    assert (second.stage_memory, second.stage_memory_bytes) == ("200m", 200 * 1024**2)
    assert second.facts.machine == "aarch64"
    assert [m.runs_broker for m in fleet.machines] == [True, False]


def test_a_broker_on_a_machine_of_its_own_is_a_machine_without_a_stage() -> None:
    fleet = parse_fleet(SEPARATE_BROKER, "f")
    assert [(m.name, m.runs_broker, m.device is None) for m in fleet.machines] == [
        ("pi-0", False, False),
        ("pi-1", False, False),
        ("hub", True, True),
    ]
    assert "hub" not in fleet.users
    assert (fleet.broker_address, fleet.broker.port) == ("192.168.1.10", 1999)


def test_every_kind_leaves_memory_to_the_system() -> None:
    smallest = {Kind.RASPBERRY_PI_ZERO_2_W: "512m"}
    for kind, facts in KINDS.items():
        has = memory_bytes(smallest.get(kind, "2g" if kind == Kind.OTHER_AMD64 else "1g"))
        used = memory_bytes(facts.stage_memory) + memory_bytes(facts.broker_memory)
        assert used <= 0.85 * has, kind
        assert facts.machine == ("x86_64" if kind == Kind.OTHER_AMD64 else "aarch64")


def test_ipv6_addresses_get_brackets_before_a_port() -> None:
    fleet = parse_fleet(SHORT.replace("192.168.1.20", '"fd00::20"'), "f")
    assert host_and_port(fleet.broker_address, 1883) == "[fd00::20]:1883"


BAD = [
    (SHORT.replace("    kind: raspberry-pi-4\n", ""), 4, "devices.0.kind", "add it"),
    (SHORT.replace("raspberry-pi-4", "pi4"), 6, "devices.0.kind", "raspberry-pi-zero-2-w"),
    (SHORT.replace("name: pi-0", "name: pi 0"), 4, "devices.0.name", "1 to 63 letters"),
    (SHORT.replace("name: pi-0", "name: 7"), 4, "devices.0.name", "in quotes"),
    (SHORT.replace("192.168.1.20", "a b"), 5, "devices.0.address", "192.168.1.20"),
    (SHORT.replace("192.168.1.20", PLACEHOLDER), 5, "devices.0.address", "IP address or DNS"),
    (SHORT.replace("192.168.1.20", "pi-0.local"), 2, "broker.host", "containers cannot look"),
    (SHORT + "    memory: 5\n", 7, "devices.0.memory", "in quotes"),
    (SHORT + "    memory: 5 GB\n", 7, "devices.0.memory", "512m or 2g"),
    (SHORT + "    uid: 0\n", 7, "devices.0.uid", "greater than or equal to 1"),
    (SHORT + "    user: Root User\n", 7, "devices.0.user", "user of Linux"),
    (SHORT + "    colour: red\n", 7, "devices.0.colour", "correct its name or remove it"),
    (SHORT + "color: red\n", 7, "color", "correct its name or remove it"),
    (SHORT + "clients: client\n", 7, "clients", "docs/deploy.md"),
    (SHORT + "clients:\n  - a\n  - a\n", 9, "clients.1", "taken by clients.0"),
    (SHORT + "observers: [client]\n", 7, "observers.0", "taken by clients.0"),
    (SHORT + "planner: pi-0\n", 7, "planner", "choose another"),
    (SHORT + "clients: [health]\n", 7, "clients.0", "health check"),
    (SHORT + "planner: pipeline\n", 7, "planner", "pipeline"),
    (SHORT + "cluster: a/b\n", 7, "cluster", "letters, digits"),
    (SHORT.replace("pi-0", "credentials"), 4, "devices.0.name", "choose another"),
    (SHORT.replace("host: pi-0", "host: hub"), 2, "broker.host", "add the `address`"),
    (SHORT.replace("pi-0\nd", "pi-0\n  address: a.b\nd"), 3, "broker.address", "remove it here"),
    (SHORT.replace("host: pi-0", "host: pi-0\n  port: 0"), 3, "broker.port", "got 0"),
    ("broker: {host: a}\ndevices: []\n", 2, "devices", "at least 1"),
    ("devices:\n  - 3\nbroker: {host: a}", 2, "devices.0", "docs/deploy.md"),
]


@pytest.mark.parametrize(("text", "line", "field", "remedy"), BAD, ids=lambda v: str(v)[-40:])
def test_a_bad_field_is_told_with_its_line_and_a_remedy(
    text: str, line: int, field: str, remedy: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_fleet(text, "my.yaml")
    message = str(caught.value)
    assert message.startswith(f"my.yaml line {line}, {field}: "), message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "deploy init"]),
        ("- a\n", ["a list", "deploy init"]),
        ("just words", ["just words"]),
        ("broker:\n  host: [a\n", ["line 3", "no YAML"]),
        ("broker:\n\thost: a\n", ["line 2", "no YAML"]),
        ("a: 1\n---\nb: 2\n", ["no YAML"]),
        ("a: !!python/object/apply:os.getcwd []\n", ["line 1", "no YAML"]),
        ("a: &x [1]\nb: *x\n", ["line 2", "alias (*x)"]),
        ("a: &x [*x]\n", ["line 1", "alias"]),
        ("cluster: a\ncluster: b\n", ["line 2", "`cluster`", "second time", "line 1"]),
        (SHORT + "    kind: raspberry-pi-5\n", ["line 7", "`kind`", "line 6"]),
        ("2024-01-01: x\n", ["in quotes"]),
        ("a: \0", ["no YAML"]),
        ("[" * 5000, ["no YAML"]),
    ],
    ids=range(14),
)
def test_what_is_no_fleet_at_all_is_told(text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_fleet(text, "my.yaml")
    for word in ("my.yaml", *words):
        assert word in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="deploy init"):
        load_fleet(tmp_path / "no.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"cluster: \xff\n")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_fleet(tmp_path / "latin.yaml")


def test_the_example_is_a_fleet_once_its_addresses_are_written() -> None:
    machines = numbered_machines(3)
    text = example_fleet(machines, Kind.RASPBERRY_PI_5, "barn", machines[1])
    assert text.count(PLACEHOLDER) == 3
    with pytest.raises(SettingsError, match=r"devices\.0\.address"):
        parse_fleet(text, "f")
    fleet = parse_fleet(text.replace(PLACEHOLDER, "10.0.0.7"), "f")
    assert [d.name for d in fleet.devices] == ["pi-0", "pi-1", "pi-2"]
    assert {d.kind for d in fleet.devices} == {Kind.RASPBERRY_PI_5}
    assert (fleet.cluster, fleet.broker.host) == ("barn", "pi-1")


def test_the_example_explains_every_kind_and_refuses_names_that_cannot_be() -> None:
    text = example_fleet([NewMachine("a", "10.0.0.7")], Kind.OTHER_AMD64, "c", NewMachine("b", "d"))
    assert [kind for kind in Kind if not re.search(rf"{kind}\b", text)] == []
    assert parse_fleet(text, "f").broker.address == "d"
    with pytest.raises(SettingsError, match="letters, digits"):
        example_fleet([NewMachine('a"\n', "x")], Kind.OTHER_AMD64, "c", NewMachine("b", "d"))
    with pytest.raises(SettingsError, match="taken"):
        example_fleet([NewMachine("a", "x")] * 2, Kind.OTHER_AMD64, "c", NewMachine("a", "x"))
