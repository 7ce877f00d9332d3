"""`shardline top` in a real pseudo-terminal against a real Mosquitto, which goes and comes back."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from tests.watch.test_observer import Device

ROOT = Path(__file__).parent.parent.parent
LEAVES_THE_SCREEN = "\x1b[?1049l"


class Terminal:
    """A process on a terminal of 80x24, and all that it has written there."""

    def __init__(self, *arguments: str, cwd: Path, **environment: str) -> None:
        self._end, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shardline", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=cwd,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment},
        )
        os.close(terminal)
        self.written = ""

    def read_until(self, words: str, timeout_s: float = 30.0) -> str:
        """What was written since the last call, up to ``words`` at least."""
        deadline, start = time.monotonic() + timeout_s, len(self.written)
        while words not in self.written[start:]:
            if time.monotonic() > deadline:
                pytest.fail(f"{words!r} was not written: {self.written[start:][-3000:]!r}")
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    self.written += os.read(self._end, 65536).decode("utf-8", "replace")
                except OSError:  # the process has ended
                    break
        return self.written[start:]

    def press(self, key: str) -> None:
        os.write(self._end, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def device(own_broker: EmbeddedBroker, unique: str) -> Iterator[Device]:
    found = Device(Connector(own_broker.address), "default", f"pi-{unique}")
    yield found
    found.close()


COLOUR = re.compile(r"\x1b\[[0-9;]*\b3[1-6]\b")


def test_it_draws_survives_the_broker_and_leaves_the_terminal_as_it_was(
    own_broker: EmbeddedBroker, device: Device, tmp_path: Path
) -> None:
    terminal = Terminal("top", "--broker", str(own_broker.address), cwd=tmp_path)
    try:
        terminal.read_until(device.name)
        terminal.read_until("what bounds it")
        assert COLOUR.search(terminal.written)
        own_broker.kill()
        terminal.read_until("no connection for ")
        own_broker.start()
        terminal.read_until("No pipeline is running")  # what bounds it, once more without a banner
        terminal.press("b")
        terminal.read_until("what bounds throughput now")
        terminal.press("q")
        terminal.read_until(LEAVES_THE_SCREEN)
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.close()


def test_without_colours_and_ended_from_outside_it_leaves_the_terminal_as_it_was(
    own_broker: EmbeddedBroker, device: Device, tmp_path: Path
) -> None:
    terminal = Terminal("top", "--broker", str(own_broker.address), cwd=tmp_path, NO_COLOR="1")
    try:
        terminal.read_until(device.name)
        terminal.process.terminate()
        terminal.read_until(LEAVES_THE_SCREEN)
        assert not COLOUR.search(terminal.written)
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.close()


def test_a_dumb_terminal_gets_one_snapshot(own_broker: EmbeddedBroker, tmp_path: Path) -> None:
    terminal = Terminal(
        "top", "--broker", str(own_broker.address), cwd=tmp_path, TERM="dumb", NO_COLOR="1"
    )
    try:
        written = terminal.read_until("shardline publish PLAN")
        assert "TERM is 'dumb': one snapshot" in written
        assert "\x1b" not in written
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.close()
