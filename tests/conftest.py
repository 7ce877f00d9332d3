"""Fixtures that every test may use: a Mosquitto of its own, a cluster name that nobody else has."""

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from shardline.__main__ import main
from stage.agent import StageAgent, StageSettings

# How long an example takes says something of the machine, which four processes share.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SHARDLINE_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    """One that the test may kill."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def connect(shared_broker: EmbeddedBroker) -> Connect:
    return Connector(shared_broker.address)


@pytest.fixture
def cluster() -> str:
    """Unique, so that tests which share a broker never meet."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def unique() -> str:
    """A suffix for names that must be unique on a shared broker."""
    return secrets.token_hex(4)


StartStage = Callable[..., StageAgent]


@pytest.fixture
def start_stage(connect: Connect, cluster: str) -> Iterator[StartStage]:
    """Starts device agents in threads; they are stopped at the end of the test."""
    running: list[tuple[StageAgent, threading.Thread]] = []

    def start(device: str, shards_dir: Path, **settings: object) -> StageAgent:
        via = settings.pop("connect", connect)
        agent = StageAgent(
            StageSettings(
                device=device,
                shards_dir=shards_dir,
                cluster=cluster,
                connect_timeout_s=10,
                **settings,  # type: ignore[arg-type]
            ),
            via,  # type: ignore[arg-type]
        )
        thread = threading.Thread(target=agent.run, name=device)
        thread.start()
        running.append((agent, thread))
        return agent

    yield start
    for agent, _ in running:
        agent.stop()
    for _, thread in running:
        thread.join(timeout=10)
        assert not thread.is_alive()


MODEL_FILES = ("test_cut_points.py", "test_split_equals_whole.py", "test_splitting_rules.py")
"""They share exported models, each of which takes torch many seconds."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs in one process where several run: the tests of a model, those first; of a file.

    The faults are long and share nothing: each goes where there is room. A test may say itself with
    which others it belongs.
    """
    items.sort(key=lambda item: item.path.name not in MODEL_FILES)
    for item in items:
        says_itself = item.get_closest_marker("xdist_group") is not None
        if item.path.name != "test_faults.py" and not says_itself:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    call = getattr(item, "callspec", None)
    model = None if call is None else call.params.get("torchvision_model")
    return str(item.path) if model is None else f"model {model}"


def let_mosquitto_in(folder: Path) -> None:
    """Let a broker that gave up root's rights read in a test's folder."""
    for parent in (folder, *folder.parents):
        if "pytest" not in str(parent):
            return
        parent.chmod(0o755)


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 15.0) -> None:
    """Poll until ``condition()`` is true: the way to wait for another thread or process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.005)


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, in an empty folder, without anybody's `.env`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["shardline", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        code = left.value.code
        captured = capsys.readouterr()
        return Done(0 if code is None else int(code), captured.out, captured.err)

    return call
