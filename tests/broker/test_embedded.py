"""The embedded Mosquitto: it comes up, it says why when it does not, and it leaves with us."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import broker.embedded
from broker.embedded import EmbeddedBroker, find_mosquitto
from broker.mosquitto_conf import MosquittoSettings, render_mosquitto_conf
from contract.errors import BrokerStartError, EnvironmentMissingError
from tests.conftest import eventually

ROOT = Path(__file__).parent.parent.parent


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_it_starts_on_a_free_port_and_ends_with_its_folder() -> None:
    with EmbeddedBroker() as first, EmbeddedBroker() as second:
        assert first.port != second.port
        assert accepts(first.port)
        assert accepts(second.port)
        assert first.address.host == "127.0.0.1"
        pid, folder = first.pid, first._folder
        assert folder.is_dir()
    assert not alive(pid)
    assert not accepts(first.port)
    assert not folder.exists()


def test_it_listens_on_loopback_only() -> None:
    with EmbeddedBroker() as running:
        listening = {
            connection.laddr.ip
            for connection in psutil.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == running.port
        }
    assert listening == {"127.0.0.1"}


def test_it_comes_back_on_the_same_port_after_a_kill() -> None:
    with EmbeddedBroker() as running:
        first = running.pid
        running.kill()
        assert not accepts(running.port)
        running.start()
        assert accepts(running.port)
        assert running.pid != first


def test_stopping_twice_is_harmless() -> None:
    running = EmbeddedBroker()
    running.stop()
    running.stop()
    with pytest.raises(BrokerStartError, match="not running"):
        _ = running.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_parent_however_the_parent_dies(number: signal.Signals) -> None:
    code = (
        "from broker.embedded import EmbeddedBroker; import time; b = EmbeddedBroker(); "
        "print(b.pid, b.port, b._folder, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid, port, folder = parent.stdout.readline().split()
    parent.stdout.close()
    try:
        assert psutil.Process(int(pid)).name() == "mosquitto"
        parent.send_signal(number)
        parent.wait(timeout=10)
        eventually(lambda: not alive(int(pid)), "mosquitto has gone with its parent", 5)
        assert not accepts(int(port))
    finally:
        if alive(int(pid)):
            os.kill(int(pid), signal.SIGKILL)
        parent.kill()
        parent.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_port_in_use_is_told_with_mosquitto_s_own_words() -> None:
    """Somebody else answers on that port: this must not pass for our broker."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerStartError, match=f"port {port}") as caught:
            EmbeddedBroker(port).stop()
    assert "in use" in str(caught.value)


def test_a_broker_that_ends_at_once_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'the moon is in the wrong phase' >&2\nexit 3\n")
    program.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(broker.embedded, "find_mosquitto", lambda: str(program))
    monkeypatch.setattr(broker.embedded, "_dies_with_parent", lambda: [])
    with pytest.raises(BrokerStartError, match="status 3") as caught:
        EmbeddedBroker()
    assert "wrong phase" in str(caught.value)


def test_a_broker_that_never_listens_is_told_with_its_log_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, pid_file = tmp_path / "mosquitto", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid_file}\necho thinking >&2\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(broker.embedded, "find_mosquitto", lambda: str(program))
    monkeypatch.setattr(broker.embedded, "_dies_with_parent", lambda: [])
    monkeypatch.setattr(broker.embedded, "START_TIMEOUT_S", 2.0)
    with pytest.raises(BrokerStartError, match="does not accept") as caught:
        EmbeddedBroker()
    assert "thinking" in str(caught.value)
    assert not alive(int(pid_file.read_text()))


def test_a_machine_without_mosquitto_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    which = shutil.which
    monkeypatch.setattr(
        broker.embedded.shutil, "which", lambda name, path=None: which(name, path=str(tmp_path))
    )
    with pytest.raises(EnvironmentMissingError, match="apt install mosquitto"):
        find_mosquitto()
    with pytest.raises(EnvironmentMissingError, match="--broker host:port"):
        EmbeddedBroker()


def test_mosquitto_is_found_outside_the_path_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = find_mosquitto()
    monkeypatch.setenv("PATH", os.pathsep.join(["/nowhere", str(Path(expected).parent)]))
    assert find_mosquitto() == expected


def test_the_configuration_holds_what_the_protocol_rests_on() -> None:
    lines = render_mosquitto_conf(
        MosquittoSettings(port=1234, max_packet_bytes=5000, max_queued_messages=77)
    ).splitlines()
    assert lines[0] == "listener 1234 127.0.0.1"
    for line in (
        "set_tcp_nodelay true",
        "persistence false",
        "max_packet_size 5000",
        "max_queued_messages 77",
        "queue_qos0_messages false",
        "max_inflight_messages 20",
    ):
        assert line in lines
