"""Who tells Home Assistant, and Home Assistant itself: what each may do at a real Mosquitto."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract import topics
from deploy.acl import observer_rights, rights_of
from deploy.fleet_file import load_fleet
from deploy.rendering import render_fleet
from shardline.__main__ import main
from tests.deploy.fleets import (
    FLEET,
    NOT_AUTHORISED,
    WITH_PASSWORDS,
    Peer,
    credentials,
    running_broker,
    who,
    write_fleet,
)
from tests.records.told import as_json, status

CLUSTER, ANNOUNCER, OBSERVER = "home", "house", "observer"
ITS_TOPICS = [topics.discovery_topic(CLUSTER, "pi-0"), topics.pipeline_discovery_topic(CLUSTER)]
Join = Callable[[str], Peer]
OTHERS = [
    topics.discovery_topic("away", "pi-0"),
    "homeassistant/sensor/alarm/config",
    "homeassistant/device/alarm/config",
    "homeassistant/status",
    topics.plan_topic(CLUSTER),
    topics.status_topic(CLUSTER, "pi-0"),
    topics.metrics_topic(CLUSTER, "pi-0"),
    topics.metrics_topic(CLUSTER, ANNOUNCER),
    topics.event_topic(CLUSTER, ANNOUNCER),
    topics.command_topic(CLUSTER, "pi-0", ANNOUNCER),
    topics.input_topic(CLUSTER, "pi-0", "0123456789abcdef", 0, ANNOUNCER),
]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    file = write_fleet(folder, WITH_PASSWORDS + f"home_assistant: {ANNOUNCER}\n")
    render_fleet(file, None, (1000, 1000))
    return folder


@pytest.fixture(scope="module")
def port(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    data = tmp_path_factory.mktemp("mosquitto")
    with running_broker(rendered / "pi-0" / "broker", data) as port:
        yield port


@pytest.fixture
def join(rendered: Path, port: int) -> Iterator[Join]:
    peers: list[Peer] = []

    def one(user: str) -> Peer:
        peers.append(Peer(port, who(rendered, user)))
        assert peers[-1].refusal is None
        return peers[-1]

    yield one
    for peer in peers:
        peer.close()


def test_the_announcer_writes_discovery_messages_of_its_cluster_and_nothing_else(
    join: Join,
) -> None:
    answers = join(ANNOUNCER).publish([*ITS_TOPICS, *OTHERS])
    refused = {topic for topic, answer in answers.items() if answer == NOT_AUTHORISED}
    assert refused == set(OTHERS)


def test_the_announcer_reads_which_devices_there_are_and_what_it_wrote(join: Join) -> None:
    announcer, device = join(ANNOUNCER), join("pi-0")
    announcer.subscribe("#")
    metrics = topics.metrics_topic(CLUSTER, "pi-0")
    event = topics.event_topic(CLUSTER, "pi-0")
    last = topics.status_topic(CLUSTER, "pi-0")
    assert set(device.publish([metrics, event, last]).values()) <= {0, 16}
    announcer.publish(ITS_TOPICS)
    announcer.wait_for(last)
    announcer.wait_for(ITS_TOPICS[-1])
    assert {topic for topic, _ in announcer.received} == {last, *ITS_TOPICS}


def test_home_assistant_is_an_observer_that_finds_them_and_writes_nothing(join: Join) -> None:
    observer = join(OBSERVER)
    observer.subscribe("homeassistant/+/+/config", "homeassistant/+/+/+/config")  # as it does
    join(ANNOUNCER).publish(ITS_TOPICS)
    for topic in ITS_TOPICS:
        observer.wait_for(topic)
    answers = observer.publish([*ITS_TOPICS, *OTHERS])
    assert set(answers.values()) == {NOT_AUTHORISED}


def test_without_it_nobody_has_these_rights(tmp_path: Path) -> None:
    fleet = load_fleet(write_fleet(tmp_path, FLEET))
    rights = rights_of(fleet)
    assert rights[OBSERVER] == observer_rights(CLUSTER)
    granted = [topic for user in rights.values() for topic in (*user.write, *user.read)]
    assert not [topic for topic in granted if topic.startswith(topics.DISCOVERY_ROOT)]


def test_its_name_is_its_own_and_its_folder_has_what_it_needs(rendered: Path) -> None:
    folder = rendered / "observers" / ANNOUNCER
    assert {file.name for file in folder.iterdir()} == {".env", "README.txt", "secrets"}
    assert f"SHARDLINE_USERNAME={ANNOUNCER}\n" in (folder / ".env").read_text()
    assert "shardline metrics --home-assistant\n" in (folder / "README.txt").read_text()


def test_the_rights_suffice_for_the_command_and_an_observer_s_do_not(
    rendered: Path,
    port: int,
    join: Join,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("client.home_assistant.announcer.SETTLE_S", 1.0)
    topic = topics.status_topic(CLUSTER, "pi-0")
    device = join("pi-0")
    device._client.publish(topic, as_json(status("pi-0")), qos=1, retain=True).wait_for_publish(5)

    def run(user: str, *arguments: str) -> tuple[int, str]:
        reach = ("--broker", f"127.0.0.1:{port}", "--cluster", CLUSTER)
        own = credentials(rendered / "observers" / user / "secrets", user)
        monkeypatch.setattr(sys, "argv", ["shardline", "metrics", *arguments, *reach, *own])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out + told.err

    assert run(ANNOUNCER, "--home-assistant", "--seconds", "3") == (
        0,
        "announced: pipeline, pi-0\n",
    )
    code, told = run(OBSERVER, "--home-assistant", "--seconds", "5")
    assert (code, "NotAuthorisedError" in told) == (3, True), told
    code, told = run(OBSERVER, "--home-assistant-remove")
    assert (code, "NotAuthorisedError" in told) == (3, True), told
    assert run(ANNOUNCER, "--home-assistant-remove") == (0, "removed: pi-0, pipeline\n")
