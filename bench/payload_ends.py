"""The two ends of the payload benchmark, over our own connection and over bare paho.

    python -m bench.payload_ends '{"kind": "ours", "host": …, "port": …}'

is the receiver: it notes when a message was there and says so in a small message at QoS 0.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from broker.connection import Connector
from broker.transport import BrokerAddress, Callbacks, ConnectionSettings, Delivery, TlsFiles

EVERY = 4
"""In a stream the receiver answers so many messages at once; one alone is answered alone."""
ONE, STREAM = b"1", b"S"
"""The first byte of a payload: how it is to be answered."""
Heard = Callable[[bytes], None]
KINDS = ("ours", "bare")


class End(Protocol):
    """A client of the broker, of either kind."""

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """Hand a message over; does not wait."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class OurEnd:
    """Over Shardline's connection."""

    def __init__(self, address: BrokerAddress, name: str, topic: str, heard: Heard) -> None:
        def hear(delivery: Delivery) -> None:
            heard(delivery.payload)
            delivery.ack()

        self._connection = Connector(address)(ConnectionSettings(name=name), Callbacks(hear))
        self._connection.subscribe(topic)

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """See :class:`End`."""
        self._connection.publish(topic, payload, qos=qos)

    def close(self) -> None:
        """See :class:`End`."""
        self._connection.close(forget_session=True)


class BareEnd:
    """Over paho as it comes, with TCP_NODELAY, without which a message waits 20 ms."""

    def __init__(self, address: BrokerAddress, name: str, topic: str, heard: Heard) -> None:
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        if address.tls is not None:
            files = address.tls
            self._client.tls_set(str(files.ca_file), str(files.cert_file), str(files.key_file))
        self._client.on_socket_open = _no_delay
        self._client.on_message = lambda _client, _data, message: heard(bytes(message.payload))
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_arguments: subscribed.set()
        self._client.connect(address.host, address.port)
        self._client.loop_start()
        while not self._client.is_connected():
            time.sleep(0.005)
        self._client.subscribe(topic, qos=1)
        if not subscribed.wait(10):
            raise RuntimeError(f"{name}: no answer to the subscription")

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """See :class:`End`."""
        self._client.publish(topic, payload, qos=qos)

    def close(self) -> None:
        """See :class:`End`."""
        self._client.disconnect()
        self._client.loop_stop()


def _no_delay(_client: Any, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def make_end(kind: str, address: BrokerAddress, name: str, topic: str, heard: Heard) -> End:
    """One of either kind, subscribed to ``topic`` at QoS 1."""
    made: Callable[..., End] = OurEnd if kind == "ours" else BareEnd
    return made(address, name, topic, heard)


def address_to_json(address: BrokerAddress) -> dict[str, Any]:
    """For the command line of a receiver: paths of files, no secrets."""
    files = address.tls
    return {
        "host": address.host,
        "port": address.port,
        "username": address.username,
        "tls": None
        if files is None
        else [str(files.ca_file), str(files.cert_file), str(files.key_file)],
    }


def address_from_json(told: dict[str, Any]) -> BrokerAddress:
    """The inverse."""
    files = None if told["tls"] is None else TlsFiles(*map(Path, told["tls"]))
    return BrokerAddress(told["host"], told["port"], told["username"], tls=files)


def receive(kind: str, address: BrokerAddress, name: str, back: str) -> None:
    """Answer until the process that started us is gone."""
    count = 0
    ready = threading.Event()

    def heard(payload: bytes) -> None:
        nonlocal count
        count += 1
        at_ns = time.perf_counter_ns()
        ready.wait()
        if payload[:1] == ONE or count % EVERY == 0:
            end.publish(back, f"{count} {at_ns}".encode(), 0)

    end = make_end(kind, address, name, f"{name}/data", heard)
    ready.set()
    print("ready", flush=True)
    sys.stdin.read()
    end.close()


if __name__ == "__main__":
    _told = json.loads(sys.argv[1])
    receive(_told["kind"], address_from_json(_told), _told["name"], _told["back"])
    os._exit(0)  # paho's threads have nothing left to do
