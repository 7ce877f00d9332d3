"""Who may write and read what, asked of a real Mosquitto that runs the rendered files."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from broker.connection import Connector
from contract import topics
from contract.profile import load_profile
from contract.topics import Topic, parse_topic
from deploy.acl import rights_of
from deploy.certificates import Credential, authority, issue_to_user
from deploy.credentials import hash_line
from deploy.fleet_file import load_fleet
from deploy.rendering import render_fleet
from planner.devices.measure_device import ProfileRequest
from shardline.__main__ import main
from tests.conftest import StartStage, eventually
from tests.deploy.fleets import (
    ADMIN,
    FLEET,
    NOT_AUTHORISED,
    WITH_PASSWORDS,
    Peer,
    Who,
    credentials,
    running_broker,
    who,
    write_fleet,
)
from tests.tiny import make_tiny_plan

CLUSTER = "home"
DEVICES, CLIENTS = ("pi-0", "pi-1", "pi-2"), ("client-a", "client-b")
PLANNER, OBSERVER, HEALTH = "planner", "observer", "health"
USERS = (*DEVICES, PLANNER, *CLIENTS, OBSERVER, HEALTH)
PLAN_ID = "0123456789abcdef"


def every_topic(cluster: str) -> list[str]:
    """Every kind of topic, to everybody, from everybody."""
    found = [topics.plan_topic(cluster)]
    found += [topics.status_topic(cluster, device) for device in DEVICES]
    for sender in USERS:
        found += [
            topics.metrics_topic(cluster, sender),
            topics.pipeline_metrics_topic(cluster, sender),
            topics.trace_topic(cluster, sender),
            topics.event_topic(cluster, sender),
        ]
        for to in USERS:
            found += [
                topics.input_topic(cluster, to, PLAN_ID, 0, sender),
                topics.input_topic(cluster, to, PLAN_ID, 1, sender),
                topics.command_topic(cluster, to, sender),
                topics.answer_topic(cluster, to, sender),
                topics.result_topic(cluster, to, sender),
                topics.nack_topic(cluster, to, sender),
                topics.blob_topic(cluster, to, sender),
                topics.clock_topic(cluster, to, sender),
            ]
    return found


EVERY_TOPIC = every_topic(CLUSTER) + every_topic("away")

WRITES = {
    "device": {
        *("status", "input", "result", "nack", "blob", "answer", "clock", "metrics", "event"),
    },
    "planner": {"command", "blob", "event"},
    "client": {"input", "pipeline_metrics", "trace", "clock", "event"},
    "observer": set[str](),
    "health": set[str](),
}
"""Kinds of topics that a role writes in its own name."""
SELF_TEST = {"device": {"command"}, "planner": {"answer"}, "client": {"result", "nack"}}
"""Kinds that a role writes to itself alone."""
READS_OWN = {
    "device": {"input", "command", "blob", "clock"},
    "planner": {"answer", "blob"},
    "client": {"result", "nack", "clock"},
    "observer": set[str](),
    "health": set[str](),
}
"""Kinds that a role reads if they are addressed to it."""
READS_ALL = {
    "device": {"plan"},
    "planner": {"plan", "status", "metrics", "pipeline_metrics", "trace", "event"},
    "client": {"plan", "status"},
    "observer": {"plan", "status", "metrics", "pipeline_metrics", "trace", "event"},
    "health": set[str](),
}
"""Kinds that a role reads whoever they are from."""


def role(user: str) -> str:
    if user in DEVICES:
        return "device"
    return "client" if user in CLIENTS else user


def may_write(user: str, topic: Topic) -> bool:
    if topic.cluster != CLUSTER:
        return False
    if topic.kind == "plan":
        return user == PLANNER
    if topic.sender == topic.to == user and topic.kind in SELF_TEST.get(role(user), ()):
        return True
    if topic.kind == "input" and (topic.stage_index == 0) != (role(user) == "client"):
        return False  # clients feed the first stage and no other, devices all others
    return topic.sender == user and topic.kind in WRITES[role(user)]


def may_read(user: str, topic: Topic) -> bool:
    if topic.cluster != CLUSTER:
        return False
    if topic.kind in READS_ALL[role(user)]:
        return True
    if topic.kind == "input" and topic.stage_index == 0 and topic.sender == user:
        return False  # what is denied is so both ways
    if topic.kind == "status" and role(user) == "device":
        return topic.sender == user
    return topic.to == user and topic.kind in READS_OWN[role(user)]


class Ground:
    """The broker, every user's credential, and connections that are closed at the end."""

    def __init__(self, port: int, users: dict[str, Who]) -> None:
        self.port, self.users, self._peers = port, users, list[Peer]()

    def join(self, user: str, client_id: str | None = None) -> Peer:
        peer = Peer(self.port, self.users[user], client_id)
        self._peers.append(peer)
        assert peer.refusal is None
        return peer

    def close(self) -> None:
        while self._peers:
            self._peers.pop().close()


@pytest.fixture
def cluster() -> str:
    """Where stages are started: that of the fleet."""
    return CLUSTER


@pytest.fixture(scope="module", params=[FLEET, WITH_PASSWORDS], ids=["certificates", "passwords"])
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    file = write_fleet(folder, request.param)
    more = "  - {name: pi-2, address: 192.168.1.22, kind: raspberry-pi-5}\nclients:\n"
    file.write_text(file.read_text().replace("clients:\n", more))
    render_fleet(file, None, (1000, 1000))
    return folder


def admit_the_admin(rendered: Path, broker: Path) -> None:
    if (broker / "passwords").exists():
        with (broker / "passwords").open("a") as passwords:
            passwords.write(hash_line(ADMIN, "of-the-tests") + "\n")
        (rendered / "credentials" / ADMIN).write_text("of-the-tests")
        return
    ours = rendered / "authority"
    ca = Credential(*((ours / name).read_text() for name in ("ca.crt", "ca.key")))
    made = issue_to_user(authority(ca), ADMIN, datetime.now(UTC))
    (rendered / "credentials" / f"{ADMIN}.crt").write_text(made.certificate)
    (rendered / "credentials" / f"{ADMIN}.key").write_text(made.key)


@pytest.fixture(scope="module")
def broker_port(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    copy = tmp_path_factory.mktemp("broker")
    for file in (rendered / "pi-0" / "broker").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with (copy / "acl").open("a") as acl:
        acl.write(f"\nuser {ADMIN}\ntopic readwrite #\n")
    admit_the_admin(rendered, copy)
    with running_broker(copy, tmp_path_factory.mktemp("mosquitto")) as port:
        yield port


@pytest.fixture
def ground(rendered: Path, broker_port: int) -> Iterator[Ground]:
    ground = Ground(broker_port, {user: who(rendered, user) for user in (*USERS, ADMIN)})
    yield ground
    ground.close()


def test_the_users_of_these_tests_are_those_of_the_fleet(rendered: Path) -> None:
    fleet = load_fleet(rendered / "fleet.yaml")
    assert set(rights_of(fleet)) == set(fleet.users) == set(USERS)


@pytest.mark.parametrize("user", USERS)
def test_a_user_writes_what_it_may_and_everything_else_is_refused(
    ground: Ground, user: str
) -> None:
    admin = ground.join(ADMIN)
    admin.subscribe("#")
    answers = ground.join(user).publish(EVERY_TOPIC, user.encode())
    allowed = {t for t in EVERY_TOPIC if may_write(user, parse_topic(t))}
    refused = {topic for topic, answer in answers.items() if answer == NOT_AUTHORISED}
    assert refused == set(EVERY_TOPIC) - allowed
    admin.publish([topics.plan_topic(CLUSTER)], b"last")
    admin.wait_for(topics.plan_topic(CLUSTER), b"last")
    assert {t for t, payload in admin.received if payload == user.encode()} == allowed


@pytest.mark.parametrize("user", [u for u in USERS if u != HEALTH])
def test_a_user_reads_what_it_may_and_nothing_else_whatever_it_subscribes_to(
    ground: Ground, user: str
) -> None:
    admin, reader = ground.join(ADMIN), ground.join(user)
    reader.subscribe("#")
    admin.publish(EVERY_TOPIC)
    admin.publish([topics.plan_topic(CLUSTER)], b"last")
    reader.wait_for(topics.plan_topic(CLUSTER), b"last")
    expected = {t for t in EVERY_TOPIC if may_read(user, parse_topic(t))}
    assert {topic for topic, _ in reader.received} == expected


def test_the_health_check_reads_the_uptime_and_nothing_else(ground: Ground) -> None:
    admin, health = ground.join(ADMIN), ground.join(HEALTH)
    health.subscribe("#", "$SYS/#")
    admin.publish(EVERY_TOPIC)
    health.received.clear()
    health.wait_for(topics.BROKER_UPTIME)
    assert {topic for topic, _ in health.received} == {topics.BROKER_UPTIME}


def test_an_observer_sees_the_broker_s_own_figures_and_nobody_else_does(ground: Ground) -> None:
    observer, device = ground.join(OBSERVER), ground.join("pi-1")
    device.subscribe("$SYS/#")
    observer.subscribe("$SYS/#", topics.metrics_filter())
    observer.wait_for("$SYS/broker/clients/connected")
    ground.join("pi-0").publish([topics.metrics_topic(CLUSTER, "pi-0")])
    observer.wait_for(topics.metrics_topic(CLUSTER, "pi-0"))
    assert device.received == []


def test_clients_and_the_planner_see_what_the_broker_drops_and_no_other_figure(
    ground: Ground,
) -> None:
    readers = [ground.join(user) for user in (PLANNER, "client-a")]
    for reader in readers:
        reader.subscribe("$SYS/#")
    for reader in readers:
        reader.wait_for(topics.BROKER_DROPPED)
        assert {topic for topic, _ in reader.received} == {topics.BROKER_DROPPED}


def test_a_wrong_password_an_unknown_user_and_no_user_are_refused(ground: Ground) -> None:
    tls = ground.users["pi-0"].tls
    if tls.cert_file is not None:
        pytest.skip("tests/broker/test_tls.py has who is refused without a right certificate")
    for user, password in (
        ("pi-0", ground.users["pi-1"].password),
        ("pi-0", ""),
        ("pi-0", None),
        ("pi-9", ground.users["pi-0"].password),
        (None, None),
    ):
        peer = Peer(ground.port, Who(user, tls, password))
        peer.close()
        assert peer.refusal in (0x86, NOT_AUTHORISED), (user, peer.refusal)


def test_whatever_user_name_is_given_the_certificate_says_who_it_is(ground: Ground) -> None:
    mine = ground.users["pi-1"]
    if mine.tls.cert_file is None:
        pytest.skip("there are passwords")
    peer = Peer(ground.port, Who(PLANNER, mine.tls, "whatever"))
    plan, event = topics.plan_topic(CLUSTER), topics.event_topic(CLUSTER, "pi-1")
    answers = peer.publish([plan, event])
    peer.close()
    assert answers[plan] == NOT_AUTHORISED
    assert answers[event] != NOT_AUTHORISED


def test_nobody_can_take_the_client_id_of_another(ground: Ground) -> None:
    owner = ground.join("pi-0")
    owner.subscribe(topics.input_filter(CLUSTER, "pi-0"))
    thief = ground.join("pi-1", client_id="pi-0")
    thief.subscribe("#")
    topic = topics.input_topic(CLUSTER, "pi-0", PLAN_ID, 0, "client-a")
    assert ground.join("client-a").publish([topic]) == {topic: 0}
    owner.wait_for(topic)
    assert not owner.disconnected.is_set()
    assert thief.received == []


def test_two_clients_do_not_see_each_other_s_results(ground: Ground) -> None:
    a, b = ground.join("client-a"), ground.join("client-b")
    for reader in (a, b):
        reader.subscribe("#")
    device = ground.join("pi-0")
    for client in CLIENTS:
        sent = [topics.result_topic(CLUSTER, client, "pi-0")]
        sent += [topics.nack_topic(CLUSTER, client, "pi-0")]
        assert set(device.publish(sent).values()) == {0}
    for name, reader in (("client-a", a), ("client-b", b)):
        reader.wait_for(topics.nack_topic(CLUSTER, name, "pi-0"))
        heard = [parse_topic(topic) for topic, _ in reader.received]
        # What another test left for everyone is addressed to nobody: nothing but plan and statuses.
        assert {topic.kind for topic in heard if topic.to is None} <= {"plan", "status"}
        assert {topic.to for topic in heard if topic.to is not None} == {name}


def test_the_rights_suffice_to_hand_out_shards_publish_a_plan_and_feed_it(
    rendered: Path,
    ground: Ground,
    start_stage: StartStage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stages, planner and client as they are, each with its own user."""
    make_tiny_plan(tmp_path, devices=())
    for device in DEVICES:
        address = ground.users[device].at(ground.port)
        nothing, cache = tmp_path / f"{device}-shards", tmp_path / f"{device}-cache"
        start_stage(device, nothing, cache_dir=cache, connect=Connector(address))
    observer = ground.join(OBSERVER)
    observer.subscribe(topics.metrics_filter())

    def run(user: str, folder: str, *arguments: str) -> int:
        secrets = rendered / folder / "secrets"
        monkeypatch.setattr(
            sys,
            "argv",
            [
                *("shardline", *arguments, "--broker", f"127.0.0.1:{ground.port}"),
                *("--cluster", CLUSTER, *credentials(secrets, user)),
            ],
        )
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    assert run(PLANNER, "planner", "publish", str(tmp_path / "tiny")) == 0, capsys.readouterr()
    assert run("client-a", "clients/client-a", "infer", "dummy:20") == 0, capsys.readouterr()
    told = " ".join(capsys.readouterr().out.split())
    assert "0 lost" in told
    eventually(
        lambda: {parse_topic(topic).sender for topic, _ in observer.received} >= set(DEVICES),
        "metrics of every device reach the observer",
    )
    observer.wait_for(topics.pipeline_metrics_topic(CLUSTER, "client-a"))
    observer.wait_for(topics.trace_topic(CLUSTER, "client-a"))


def test_the_rights_suffice_to_profile_the_devices(
    rendered: Path,
    ground: Ground,
    start_stage: StartStage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A device's probe of its link goes by topics that it may write and read already."""
    address = ground.users["pi-1"].at(ground.port)
    start_stage("pi-1", tmp_path / "none", cache_dir=tmp_path / "pi-1", connect=Connector(address))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "planner.devices.measure_device.ProfileRequest",
        partial(ProfileRequest, budget_s=0.05, probe_s=0.3),
    )
    file = tmp_path / "built" / "profile.json"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("shardline", "profile", "tests.planner.small_models:Plain", "--input", "32x32"),
            *("--weights", "random", "--device", "pi-1", "--out", str(file)),
            *("--broker", f"127.0.0.1:{ground.port}", "--cluster", CLUSTER),
            *credentials(rendered / "planner" / "secrets", PLANNER),
        ],
    )
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr()
    assert int(left.value.code or 0) == 0, told
    assert "pi-1" in told.out
    assert f"written to {file}" in told.out
    [device] = load_profile(file).devices
    assert device.link_up_bytes_per_s is not None
    assert device.link_down_bytes_per_s is not None
    assert list((tmp_path / "cache" / "shardline" / "profiles").glob("*.json"))
