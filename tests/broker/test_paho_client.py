"""The shorter way for messages: whatever a socket gives or takes, the same packets go through."""

import hashlib
import secrets
import struct
import threading
from collections.abc import Callable, Iterable

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from broker.connection import PahoConnection
from broker.embedded import EmbeddedBroker
from broker.paho_client import READ_AHEAD_BYTES, PahoClient
from broker.transport import Callbacks, ConnectionSettings, Delivery, PublishOutcome
from tests.conftest import eventually


class FakeSocket:
    """Gives its bytes in pieces of given sizes, each followed by «nothing yet»; takes so many."""

    def __init__(self, incoming: bytes = b"", pieces: Iterable[int] = (), room: int = 1 << 30):
        self.incoming, self.room, self.lost = incoming, room, False
        self._pieces = iter(pieces)
        self._left = next(self._pieces, len(incoming))
        self.written = bytearray()
        self.meanwhile: Callable[[], object] = lambda: None

    def recv_into(self, buffer: memoryview) -> int:
        if not self.incoming:
            raise BlockingIOError
        if not self._left:
            self._left = next(self._pieces, len(self.incoming))
            raise BlockingIOError
        size = min(len(buffer), self._left, len(self.incoming))
        buffer[:size] = self.incoming[:size]
        self.incoming, self._left = self.incoming[size:], self._left - size
        return size

    def send(self, data: bytes | memoryview) -> int:
        if self.lost:
            raise ConnectionResetError
        if not self.room:
            raise BlockingIOError
        taken = min(self.room, len(data))
        self.written += bytes(data[:taken])
        self.room -= taken
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return taken

    def close(self) -> None:
        self.lost = True


def client_on(sock: FakeSocket) -> PahoClient:
    client = PahoClient(
        CallbackAPIVersion.VERSION2, client_id="c", protocol=mqtt.MQTTv5, manual_ack=True
    )
    client._sock = sock  # type: ignore[assignment]
    client._state = mqtt._ConnectionState.MQTT_CS_CONNECTED
    return client


def packet(command: int, body: bytes) -> bytes:
    length, size = b"", len(body)
    while True:
        size, low = divmod(size, 128)
        length += bytes([low | (128 if size else 0)])
        if not size:
            return bytes([command]) + length + body


def message(mid: int, payload: bytes, qos: int = 1, properties: bytes = b"\x00") -> bytes:
    topic = b"a/b"
    mid_bytes = struct.pack("!H", mid) if qos else b""
    body = struct.pack("!H", len(topic)) + topic + mid_bytes + properties + payload
    return packet(0x30 | qos << 1, body)


SIZES = (0, 1, 120, 121, 127, 128, READ_AHEAD_BYTES - 9, READ_AHEAD_BYTES, 16_500, 70_000)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 4095, 4096, 4097, 1 << 20])
def test_messages_arrive_whole_and_in_order_however_they_are_cut(piece: int) -> None:
    payloads = [secrets.token_bytes(size) for size in SIZES]
    stream = b"".join(message(index + 1, p) for index, p in enumerate(payloads))
    stream += message(0, b"\0\0last", qos=0)
    sock = FakeSocket(stream, [piece] * (len(stream) // piece + 1))
    client = client_on(sock)
    heard: list[mqtt.MQTTMessage] = []
    client.on_message = lambda _c, _d, m: heard.append(m)
    while sock.incoming or client._at < client._end:
        assert client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert [m.payload for m in heard] == [*payloads, b"\0\0last"]
    assert [m.mid for m in heard] == [*range(1, len(SIZES) + 1), 0]
    assert [m.qos for m in heard] == [1] * len(SIZES) + [0]
    assert {m.topic for m in heard} == {"a/b"}


def test_what_was_read_ahead_is_handled_without_another_word_from_the_socket() -> None:
    sock = FakeSocket(b"".join(message(mid, b"x") for mid in range(1, 30)))
    client = client_on(sock)
    heard: list[int] = []
    client.on_message = lambda _c, _d, m: heard.append(m.mid)
    client.loop_read()
    assert heard == list(range(1, 30))


def test_a_message_with_properties_arrives_and_keeps_its_payload_apart_from_them() -> None:
    client = client_on(FakeSocket(message(1, b"payload", properties=b"\x05\x02\x00\x00\x00\x07")))
    heard: list[mqtt.MQTTMessage] = []
    client.on_message = lambda _c, _d, m: heard.append(m)
    client.loop_read()
    assert heard[0].payload == b"payload"
    assert heard[0].properties is not None
    assert heard[0].properties.MessageExpiryInterval == 7


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (b"\x30\xff\xff\xff\xff\x01", "five bytes of length"),
        (packet(0x32, b"\x00\x09ab"), "a topic longer than the packet"),
        (packet(0x40, b"\x00\x01\x03"), "a reason code that does not exist"),
    ],
)
def test_a_packet_that_is_none_ends_the_connection(stream: bytes, what: str) -> None:
    client = client_on(FakeSocket(stream))
    client._out_messages[1] = mqtt.MQTTMessage(1, b"a")
    try:
        result = client._packet_read()
    except struct.error:
        return  # paho's own way with such a topic
    assert result == MQTTErrorCode.MQTT_ERR_PROTOCOL, what


@pytest.mark.parametrize(
    ("body", "code"), [(b"", 0), (b"\x10", 0x10), (b"\x87", 0x87), (b"\x87\x00", 0x87)]
)
def test_the_brokers_word_on_a_message_is_heard(body: bytes, code: int) -> None:
    sock = FakeSocket()
    client = client_on(sock)
    said: list[tuple[int, int]] = []
    client.on_publish = lambda _c, _d, mid, reason, _p: said.append((mid, reason.value))
    mid = client.publish("a/b", b"x", qos=1).mid
    sock.incoming, sock._left = packet(0x40, struct.pack("!H", mid) + body), 100
    client.loop_read()
    assert said == [(mid, code)]
    assert not client._out_messages
    sock.incoming, sock._left = packet(0x40, struct.pack("!H", mid) + body), 100
    client.loop_read()
    assert said == [(mid, code)], "an acknowledgement that comes twice counts once"


def test_a_message_is_on_the_wire_when_publish_returns() -> None:
    sock = FakeSocket()
    client = client_on(sock)
    client.publish("a/b", b"x" * 1000, qos=1)
    assert bytes(sock.written) == message(1, b"x" * 1000)


def test_what_the_socket_does_not_take_follows_before_anything_else() -> None:
    sock = FakeSocket(room=10)
    client = client_on(sock)
    for mid in (1, 2, 3):
        client.publish("a/b", bytes([mid]) * 1000, qos=1)
    client.ack(9, 1)
    client.publish("a/b", b"zero", qos=0)
    assert len(sock.written) == 10
    while client._out_packet:
        sock.room = 333
        client._packet_write()
    expected = [message(mid, bytes([mid]) * 1000) for mid in (1, 2, 3)]
    expected += [packet(0x40, struct.pack("!H", 9)), message(0, b"zero", qos=0)]
    assert bytes(sock.written) == b"".join(expected)


def test_the_rest_of_a_message_comes_before_what_was_queued_while_it_was_sent() -> None:
    sock = FakeSocket(room=10)
    client = client_on(sock)
    sock.meanwhile = lambda: client._out_packet.append(
        {
            "command": 0x30,
            "mid": 0,
            "qos": 1,
            "pos": 0,
            "to_process": 5,
            "packet": b"later",
            "info": None,
        }
    )
    client.publish("a/b", b"x" * 100, qos=1)
    sock.room = 1000
    client._packet_write()
    assert bytes(sock.written) == message(1, b"x" * 100) + b"later"


def test_while_another_thread_writes_a_message_waits_its_turn() -> None:
    sock = FakeSocket()
    client = client_on(sock)
    client._thread = threading.Thread()  # paho's own way then is to queue it for that thread
    with client._write_lock:
        thread = threading.Thread(target=client.publish, args=("a/b", b"x", 1))
        thread.start()
        thread.join()
        assert not sock.written
    client._packet_write()
    assert bytes(sock.written) == message(1, b"x")


def test_a_lost_connection_is_left_to_the_network_thread() -> None:
    sock = FakeSocket()
    client = client_on(sock)
    sock.lost = True
    assert client.publish("a/b", b"x", qos=1).rc == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert client._sock is sock
    assert client._out_messages, "paho sends it again on the next connection"


def test_nothing_is_sent_past_a_connect_that_is_not_answered() -> None:
    sock = FakeSocket()
    client = client_on(sock)
    client._thread = threading.Thread()
    client._state = mqtt._ConnectionState.MQTT_CS_CONNECTING
    client.publish("a/b", b"x", qos=1)
    assert not sock.written


def test_large_messages_of_many_threads_cross_a_broker_unharmed(
    shared_broker: EmbeddedBroker, unique: str
) -> None:
    heard: list[bytes] = []

    def take(delivery: Delivery) -> None:
        heard.append(hashlib.sha256(delivery.payload).digest())
        delivery.ack()

    def opened(name: str, on_delivery: Callbacks) -> PahoConnection:
        connection = PahoConnection(shared_broker.address, ConnectionSettings(name), on_delivery)
        connection.open()
        return connection

    receiver = opened(f"to-{unique}", Callbacks(on_delivery=take))
    sender = opened(f"from-{unique}", Callbacks(on_delivery=Delivery.ack))
    try:
        receiver.subscribe(f"{unique}/#")
        stands = PublishOutcome.ACCEPTED
        eventually(
            lambda: sender.publish(f"{unique}/0", b"probe").result(timeout=5) is stands,
            "the subscription stands",
        )
        payloads = [secrets.token_bytes(400_000 + 7 * n) for n in range(12)]
        outcomes: list[PublishOutcome] = []

        def send(part: int) -> None:
            for payload in payloads[part::3]:
                outcomes.append(sender.publish(f"{unique}/{part}", payload).result(timeout=20))

        threads = [threading.Thread(target=send, args=(part,)) for part in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wanted = {hashlib.sha256(payload).digest() for payload in payloads}
        eventually(lambda: wanted <= set(heard), "all have arrived")
        assert set(outcomes) == {PublishOutcome.ACCEPTED}
    finally:
        sender.close(forget_session=True)
        receiver.close(forget_session=True)
