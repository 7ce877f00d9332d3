"""`shardline dashboard`: from its options to its end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from broker.embedded import EmbeddedBroker
from client.dashboard.serve import Bind, listen, parse_bind
from contract.errors import ExitCode, SettingsError
from tests.conftest import Run
from tests.dashboard.test_dashboard_server import stream

ROOT = Path(__file__).parents[2]


@contextmanager
def command(*options: str) -> Iterator[tuple["subprocess.Popen[str]", str, list[str]]]:
    """The command as a process of its own; its page, and what it said until then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shardline", "dashboard", "--bind", "127.0.0.1:0", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said: list[str] = []
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail(f"it ended: {said}")
        yield process, found[0], said
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end_and_ends_in_order(
    shared_broker: EmbeddedBroker, number: int
) -> None:
    with (
        command("--broker", str(shared_broker.address)) as (process, url, said),
        stream(url) as views,
    ):
        assert next(views)["is_connected"]
        assert "dashboard of cluster default" in said[0]
        process.send_signal(number)
        list(views)
        assert process.wait(timeout=10) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_token_is_made_and_never_printed(shared_broker: EmbeddedBroker, tmp_path: Path) -> None:
    file = tmp_path / "token"
    options = ("--broker", str(shared_broker.address), "--token-file", str(file), "--verbose")
    with command(*options) as (process, url, said):
        assert httpx2.get(f"{url}/api/view", trust_env=False).status_code == 401
        token = file.read_text().strip()
        bearer = {"authorization": f"Bearer {token}"}
        assert httpx2.get(f"{url}/api/view", headers=bearer, trust_env=False).status_code == 200
        process.terminate()
        assert process.wait(timeout=10) == 0
        assert process.stderr is not None
        everything = "".join(said) + process.stderr.read()
        assert str(file) in everything
        assert token not in everything


def test_a_port_that_is_taken_is_told(run: Run) -> None:
    with listen(Bind("127.0.0.1", 0)) as free:
        taken = free.getsockname()[1]
        done = run("dashboard", "--bind", f"127.0.0.1:{taken}")
    assert done.code == ExitCode.SETTINGS
    assert f"--bind 127.0.0.1:{taken}: cannot listen there (Address already in use)" in done.err


@pytest.mark.parametrize(
    ("text", "bind", "loopback"),
    [
        ("127.0.0.1:8080", Bind("127.0.0.1", 8080), True),
        ("localhost", Bind("localhost", 8080), True),
        ("[::1]:80", Bind("::1", 80), True),
        ("[::1]", Bind("::1", 8080), True),
        (":0", Bind("0.0.0.0", 0), False),
        ("192.168.1.5:9000", Bind("192.168.1.5", 9000), False),
    ],
)
def test_where_to_listen_is_read(text: str, bind: Bind, loopback: bool) -> None:
    assert parse_bind(text) == bind
    assert bind.is_loopback is loopback


@pytest.mark.parametrize("text", ["", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "a:-1"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(SettingsError, match="expected host:port"):
        parse_bind(text)


@pytest.mark.parametrize("name", ["pi.local:8080", "http://pi.local", ""])
def test_a_host_to_allow_is_a_name_alone(run: Run, name: str) -> None:
    done = run("dashboard", "--allow-host", name)
    assert done.code == ExitCode.SETTINGS
    assert f"--allow-host {name!r}: expected a name alone" in done.err


def test_an_address_of_another_machine_is_told(run: Run) -> None:
    done = run("dashboard", "--bind", "192.0.2.1:8080")
    assert done.code == ExitCode.SETTINGS
    assert "--bind 192.0.2.1:8080: cannot listen there" in done.err


@pytest.mark.parametrize("host", ["192.168..1", "a" * 64 + ".local"])
def test_a_name_that_no_host_can_have_is_told(host: str) -> None:
    with pytest.raises(SettingsError, match="no host can be called so"):
        listen(Bind(host, 0))


def test_without_the_packages_it_is_told_in_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    done = run("dashboard")
    assert done.code == ExitCode.ENVIRONMENT
    assert "starlette is not installed" in done.err
    assert "shardline[watch]" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_bound_elsewhere_without_a_token_it_warns(shared_broker: EmbeddedBroker) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "shardline", "dashboard", "--bind", ":0"),
            *("--broker", str(shared_broker.address)),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline() + process.stderr.readline()
        assert "warning: whoever reaches" in said
        assert "--token-file" in said
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
