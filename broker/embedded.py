"""Mosquitto as a child process on a free loopback port: the broker of the demo and the tests.

The child dies with its parent, however the parent dies: on Linux the kernel sends it a signal
(PR_SET_PDEATHSIG, set through util-linux' setpriv). Start it from a thread that lives as long as
the broker shall, since the kernel means that thread.
"""

import atexit
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from broker.heap import ENVIRONMENT
from broker.mosquitto_conf import ListenerTls, MosquittoSettings, render_mosquitto_conf
from broker.transport import BrokerAddress
from contract.errors import BrokerStartError, EnvironmentMissingError

START_TIMEOUT_S = 10.0
LOG_LINES_SHOWN = 20
_SBIN = "/usr/sbin"  # where Debian puts mosquitto; not on every user's PATH


def find_mosquitto() -> str:
    """Path of the mosquitto program.

    Raises:
        EnvironmentMissingError: it is not installed.
    """
    search_path = os.pathsep.join((os.environ.get("PATH", ""), _SBIN, "/usr/local/sbin"))
    program = shutil.which("mosquitto", path=search_path)
    if program is None:
        raise EnvironmentMissingError(
            "mosquitto is not installed; on Debian and Raspberry Pi OS: sudo apt install mosquitto "
            "(or use another broker: --broker host:port)"
        )
    return program


class EmbeddedBroker:
    """A running Mosquitto. Use as a context manager, or call :meth:`stop`."""

    def __init__(
        self,
        port: int | None = None,
        tls: ListenerTls | None = None,
        acl_file: Path | None = None,
    ) -> None:
        """Start on ``port``, or on a free one, and wait until it accepts connections.

        Args:
            port: on loopback.
            tls: without it anyone may connect. The files are read again at every :meth:`start`.
            acl_file: who may write and read what; read again likewise.

        Raises:
            EnvironmentMissingError: mosquitto is not installed.
            BrokerStartError: it did not come up; the message ends with its log.
        """
        self._program = find_mosquitto()
        self._folder = Path(tempfile.mkdtemp(prefix="shardline-broker-"))
        self._log_path = self._folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._tls, self._acl_file = tls, acl_file
        self.port = port if port is not None else _free_port()
        atexit.register(self.stop)
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> BrokerAddress:
        """Where it listens."""
        return BrokerAddress("127.0.0.1", self.port)

    @property
    def pid(self) -> int:
        """Process id of Mosquitto."""
        if self._process is None:
            raise BrokerStartError("the embedded broker is not running")
        return self._process.pid

    def start(self) -> None:
        """Start it, again after :meth:`kill`, on the same port.

        Raises:
            BrokerStartError: it did not come up.
        """
        _check_free(self.port)
        conf = self._folder / "mosquitto.conf"
        conf.write_text(render_mosquitto_conf(self._settings()))
        self._folder.chmod(0o755)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*_dies_with_parent(), self._program, "-c", str(conf)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,  # Ctrl-C in the terminal is for us, we stop it in order
            )
        self._wait_until_it_accepts(self._process)

    def _settings(self) -> MosquittoSettings:
        tls, acl_file = None, None
        if self._tls is not None:
            names = ("ca_file", "cert_file", "key_file", "crl_file")
            own = {name: self._own_copy(Path(getattr(self._tls, name))) for name in names}
            tls = self._tls.model_copy(update=own)
        if self._acl_file is not None:
            acl_file = self._own_copy(self._acl_file)
        return MosquittoSettings(port=self.port, tls=tls, acl_file=acl_file)

    def _own_copy(self, file: Path) -> str:
        """Of a file that is to be secret, where Mosquitto may read it whoever it runs as."""
        copy = self._folder / file.name
        copy.unlink(missing_ok=True)
        copy.touch(mode=0o600)
        copy.write_bytes(file.read_bytes())
        user = _runs_as()
        if user is not None:
            os.chown(copy, user.pw_uid, user.pw_gid)
        return str(copy)

    def _wait_until_it_accepts(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BrokerStartError(
                    f"mosquitto ended with status {process.returncode} on port {self.port}; "
                    f"its log:\n{self.log_tail()}"
                )
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=0.2):
                    return
            except OSError:
                time.sleep(0.01)
        raise BrokerStartError(
            f"mosquitto does not accept connections on port {self.port} after "
            f"{START_TIMEOUT_S:g} s; its log:\n{self.log_tail()}"
        )

    def log_tail(self) -> str:
        """The last lines of Mosquitto's log."""
        try:
            lines = self._log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-LOG_LINES_SHOWN:]) or "(empty log)"

    def wait(self) -> int:
        """Wait until it ends; its exit status."""
        return 0 if self._process is None else self._process.wait()

    def kill(self) -> None:
        """End it at once (SIGKILL); :meth:`start` brings it back, with nothing remembered."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it in order and remove its folder; harmless when it has ended."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "EmbeddedBroker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _dies_with_parent() -> list[str]:
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return []  # then atexit stops it, which covers all but our own SIGKILL
    command = [setpriv, "--pdeathsig", "TERM"]
    if os.geteuid() == 0:
        # As root, Mosquitto would change its user itself, and that clears the death signal.
        user = _runs_as()
        if user is None:
            return []
        command += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*command, "--"]


def _runs_as() -> pwd.struct_passwd | None:
    """Whom Mosquitto runs as if it is root who starts it; None for ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("mosquitto", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _check_free(port: int) -> None:
    """Whoever listens there already would answer in place of ours, and look like it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BrokerStartError(
                f"port {port} on 127.0.0.1: {error.strerror}; another broker may be running: "
                "use it with --broker, or choose another port with --port"
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
