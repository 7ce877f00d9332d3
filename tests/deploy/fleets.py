"""Fleets for these tests, and a Mosquitto that runs a rendered configuration."""

import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from broker.embedded import find_mosquitto
from broker.transport import BrokerAddress, TlsFiles

FLEET = """\
cluster: home
broker:
  host: pi-0
devices:
  - name: pi-0
    address: 192.168.1.20
    kind: raspberry-pi-4
  - name: pi-1
    address: 192.168.1.21
    kind: raspberry-pi-zero-2-w
    memory: 200m
    user: maker
    uid: 1001
    gid: 1002
clients:
  - client-a
  - client-b
"""
SEPARATE_BROKER = FLEET.replace("host: pi-0", "host: hub\n  address: 192.168.1.10\n  port: 1999")
WITH_PASSWORDS = FLEET.replace("cluster: home\n", "cluster: home\nsecurity: passwords\n")
ADMIN = "admin"
"""A user of the tests that may do everything: it sees what arrives, and publishes to all."""
NOT_AUTHORISED = 0x87


def write_fleet(folder: Path, text: str = FLEET) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(text)
    return file


@contextmanager
def running_broker(rendered: Path, folder: Path) -> Iterator[int]:
    """Mosquitto with the rendered ``broker`` folder; its port. Only paths and listener differ.

    What it keeps is in ``folder``: started there again, it knows it.
    """
    port = _free_port()
    config, data = folder / "config", folder / "data"
    config.mkdir(parents=True, exist_ok=True)
    data.mkdir(exist_ok=True)
    for file in rendered.iterdir():
        (config / file.name).write_bytes(file.read_bytes())
        (config / file.name).chmod(0o600)
    text = (rendered / "mosquitto.conf").read_text()
    for old, new in (
        ("listener 8883\n", f"listener {port} 127.0.0.1\n"),
        ("/mosquitto/config/", f"{config}/"),
        ("/var/lib/mosquitto/", f"{data}/"),
        ("sys_interval 10\n", "sys_interval 1\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    if os.geteuid() == 0:
        text += "user root\n"  # it would give up root, and the files of the test are root's
    (config / "mosquitto.conf").write_text(text)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [find_mosquitto(), "-c", str(config / "mosquitto.conf")], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Who(NamedTuple):
    """What a user shows the broker, and who vouches for the broker."""

    user: str | None
    tls: TlsFiles
    password: str | None = None

    def at(self, port: int) -> BrokerAddress:
        return BrokerAddress("127.0.0.1", port, self.user, self.password, self.tls)


def who(rendered: Path, user: str) -> Who:
    """A user of a rendered fleet, by certificate or password."""
    ca, own = rendered / "authority" / "ca.crt", rendered / "credentials" / user
    if own.exists():
        return Who(user, TlsFiles(ca), own.read_text().strip())
    return Who(user, TlsFiles(ca, own.with_suffix(".crt"), own.with_suffix(".key")))


class Peer:
    """One connection as a user; remembers what arrives and how each publish was answered."""

    def __init__(self, port: int, who: Who, client_id: str | None = None) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.refusal: int | None = None
        self.disconnected = threading.Event()
        self._answers: dict[int, int] = {}
        self._changed = threading.Condition()
        self._first_answer = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=who.user or "nobody" if client_id is None else client_id,
            protocol=mqtt.MQTTv5,
        )
        context = ssl.create_default_context(cafile=who.tls.ca_file)
        if who.tls.cert_file is not None:
            context.load_cert_chain(who.tls.cert_file, who.tls.key_file)
        self._client.tls_set_context(context)
        if who.user is not None:
            self._client.username_pw_set(who.user, who.password)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._note(0, 0)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._first_answer.wait(10), "the broker does not answer"

    def _on_connect(self, _c: Any, _d: Any, _f: Any, reason: Any, _p: Any) -> None:
        self.refusal = reason.value if reason.is_failure else None
        self._first_answer.set()

    def _on_disconnect(self, *_: Any) -> None:
        self.disconnected.set()

    def _on_publish(self, _c: Any, _d: Any, mid: int, reason: Any, _p: Any) -> None:
        self._note(mid, reason.value)

    def _note(self, key: int, value: int) -> None:
        with self._changed:
            self._answers[key] = value
            self._changed.notify_all()

    def _on_message(self, _c: Any, _d: Any, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.received.append((message.topic, message.payload))
            self._changed.notify_all()

    def subscribe(self, *filters: str) -> None:
        for topic_filter in filters:
            self._answers.pop(0, None)
            self._client.subscribe(topic_filter, qos=1)
            self._wait(lambda: 0 in self._answers, f"SUBACK for {topic_filter}")

    def publish(self, topics: list[str], payload: bytes = b"x") -> dict[str, int]:
        """The broker's answer for every topic."""
        sent = {topic: self._client.publish(topic, payload, qos=1).mid for topic in topics}
        self._wait(lambda: all(mid in self._answers for mid in sent.values()), "every PUBACK")
        return {topic: self._answers[mid] for topic, mid in sent.items()}

    def wait_for(self, topic: str, payload: bytes | None = None) -> None:
        self._wait(
            lambda: any(t == topic and payload in (None, p) for t, p in self.received),
            f"a message on {topic}",
        )

    def _wait(self, condition: Any, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 15), f"not within 15 s: {what}"

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()


def credentials(secrets: Path, user: str) -> list[str]:
    """Options of a command, from a rendered folder."""
    options = ["--ca-file", str(secrets / "ca.crt")]
    if (secrets / "password").exists():
        return [*options, "--username", user, "--password-file", str(secrets / "password")]
    return [*options, "--cert-file", f"{secrets}/user.crt", "--key-file", f"{secrets}/user.key"]
