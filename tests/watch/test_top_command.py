"""`shardline top` as a command: a snapshot as text and as JSON, and why there is no live view."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import Callbacks, Connect, ConnectionSettings
from contract import topics
from contract.errors import EnvironmentMissingError
from contract.plan import Plan
from shardline.top import run as top_run
from shardline.top import snapshot
from tests.conftest import Run
from tests.tiny import make_tiny_plan
from tests.watch import scenes
from tests.watch.cluster import pipeline_metrics
from tests.watch.test_observer import Device


@pytest.fixture
def plan(connect: Connect, cluster: str, unique: str, tmp_path: Path) -> Iterator[Plan]:
    """Published, and served by three devices that publish when a watcher comes."""
    made = make_tiny_plan(tmp_path, cluster=cluster)
    planner = connect(
        ConnectionSettings(name=f"planner-{unique}"), Callbacks(on_delivery=lambda _: None)
    )
    planner.publish(topics.plan_topic(cluster), made.to_message().encode(), retain=True).result(5)
    yield made
    planner.publish(topics.plan_topic(cluster), b"", retain=True).result(5)
    planner.close(forget_session=True)


@pytest.fixture
def publishing(
    plan: Plan, connect: Connect, cluster: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Devices and a client that say something while the command waits for its second."""
    devices = [Device(connect, cluster, name) for name in ("pi-0", "pi-1", "pi-2")]
    client = connect(
        ConnectionSettings(name=f"client-{unique}"), Callbacks(on_delivery=lambda _: None)
    )
    fed = pipeline_metrics("client-1", plan.plan_id).model_dump_json().encode()

    def speak(_seconds: float) -> None:
        for device in devices:
            device.publish_metrics()
        client.publish(topics.pipeline_metrics_topic(cluster, "client-1"), fed, qos=0)
        snapshot_sleep(_seconds)

    snapshot_sleep = snapshot.time.sleep
    monkeypatch.setattr(
        top_run, "first_second", lambda observer: snapshot.first_second(observer, speak)
    )
    yield
    for device in devices:
        device.close()
    client.close(forget_session=True)


def test_one_snapshot_as_plain_text(
    publishing: None, shared_broker: EmbeddedBroker, cluster: str, run: Run
) -> None:
    done = run("top", "--once", "--broker", shared_broker.address, "--cluster", cluster)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    for words in ("tiny", "3 stages", "80.0 images/s", "pi-2", "submitted 834", "Stage 0 has no"):
        assert words in done.out, done.out
    assert done.err == ""


def test_one_snapshot_as_json(
    publishing: None, plan: Plan, shared_broker: EmbeddedBroker, cluster: str, run: Run
) -> None:
    done = run("top", "--json", "--broker", shared_broker.address, "--cluster", cluster)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["format_version"] == 1
    assert document["plan"]["plan_id"] == plan.plan_id
    assert document["plan"]["stages"] == [["pi-0"], ["pi-1"], ["pi-2"]]
    devices = {device["device"]: device for device in document["devices"]}
    assert set(devices) == {"pi-0", "pi-1", "pi-2"}
    assert devices["pi-0"]["is_fresh"]
    assert devices["pi-0"]["metrics"]["utilisation"] == 0.3
    (pipeline,) = document["pipelines"]
    assert pipeline["metrics"]["ledger"]["submitted"] == 834
    assert document["bound"]["kind"] == "stage_missing"  # they hold no shard
    assert document["bound"]["helps"]


def test_a_pipe_gets_a_snapshot_and_is_told_why(
    publishing: None, shared_broker: EmbeddedBroker, cluster: str, run: Run
) -> None:
    done = run("top", "--broker", shared_broker.address, "--cluster", cluster)
    assert done.code == 0, done.err
    assert "shardline top" in done.out
    assert "stdout is not a terminal: one snapshot, as with --once" in done.err


def test_options_that_cannot_be_used_are_the_usual_errors(
    run: Run, own_broker: EmbeddedBroker
) -> None:
    done = run("top", "--once", "--broker", own_broker.address, "--cluster", "no such name")
    assert done.code == 2
    assert "cluster name 'no such name'" in done.err
    password = run("top", "--once", "--broker", own_broker.address, "--password-file", "absent")
    assert password.code == 2
    assert "--password-file absent" in password.err


class Terminal(io.StringIO):
    def __init__(self, is_terminal: bool, encoding: str) -> None:
        super().__init__()
        self._is_terminal, self._encoding = is_terminal, encoding

    def isatty(self) -> bool:
        return self._is_terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


@pytest.mark.parametrize(
    ("is_terminal", "encoding", "term", "why"),
    [
        (True, "utf-8", "xterm-256color", None),
        (True, "UTF8", "linux", None),
        (False, "utf-8", "xterm", "stdout is not a terminal"),
        (True, "utf-8", "dumb", "TERM is 'dumb'"),
        (True, "utf-8", None, "TERM is ''"),
        (True, "iso-8859-1", "xterm", "encoding is iso-8859-1"),
    ],
)
def test_a_live_view_needs_a_terminal_that_can_be_drawn_on(
    is_terminal: bool, encoding: str, term: str | None, why: str | None
) -> None:
    environment = {} if term is None else {"TERM": term}
    found = top_run.why_not_live(Terminal(is_terminal, encoding), environment)
    assert (found is None) if why is None else (found is not None and why in found)


def test_without_textual_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top_run.require_textual()
    monkeypatch.setitem(sys.modules, "textual", None)
    with pytest.raises(EnvironmentMissingError, match=r"pip install 'shardline\[watch\]'"):
        top_run.require_textual()


def test_a_terminal_of_another_encoding_gets_letters_that_it_knows(tmp_path: Path) -> None:
    view = scenes.running(tmp_path).view()
    text = snapshot.snapshot_text(view, "127.0.0.1:1883", 140)
    assert "█" in text
    file = Terminal(True, "ascii")
    snapshot.write_text(text, file)
    shown = file.getvalue()
    shown.encode("ascii")
    assert "###" in shown
    file = Terminal(True, "utf-8")
    snapshot.write_text(text, file)
    assert file.getvalue() == text


def test_the_snapshot_holds_all_devices_and_the_explanation_in_full(tmp_path: Path) -> None:
    text = snapshot.snapshot_text(scenes.fifty(tmp_path).view(), "127.0.0.1:1883", 80)
    assert all(f"pi-{number:02d} " in text for number in range(scenes.MANY))
    assert "`shardline infer --window 100`" in text
    assert max(map(len, text.splitlines())) <= 80
    gone = snapshot.snapshot_text(scenes.broker_gone(tmp_path).view(), "127.0.0.1:1883", 80)
    assert "no connection for 12 s: shown is what was last heard" in gone
    nothing = snapshot.snapshot_text(scenes.nothing_yet().view(), "127.0.0.1:1883", 80)
    assert "none were heard of" in nothing
    json.dumps(snapshot.snapshot_document(scenes.hostile(tmp_path).view()))


def test_the_first_second_waits_for_devices_that_are_online(
    plan: Plan, connect: Connect, shared_broker: EmbeddedBroker, cluster: str, unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(snapshot, "ONE_SECOND_S", 0.0)
    monkeypatch.setattr(snapshot, "AT_MOST_S", 10.0)
    from client.watch.observer import Observer

    device = Device(connect, cluster, "pi-0")
    slept = 0

    def speak_late(seconds: float) -> None:
        nonlocal slept
        slept += 1
        snapshot.time.sleep(seconds)
        if slept == 5:
            device.publish_metrics()

    with Observer(Connector(shared_broker.address), cluster, f"top-{unique}") as observer:
        while not observer.view().devices:
            snapshot.time.sleep(0.01)
        view = snapshot.first_second(observer, speak_late)
    device.close()
    assert slept >= 5
    assert view.devices[0].metrics is not None
