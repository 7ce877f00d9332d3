"""paho's client with a shorter way for large messages: fewer copies, system calls and wake-ups.

A stage's network thread shares a slow processor with its engine. As it comes, paho reads a packet's
head byte by byte, copies a payload six times, copies what is left of a packet each time that a
socket takes a part of it, and wakes its network thread for every packet that another thread sends.
Here a packet is read into one buffer and copied out once, and whoever has something to send hands
it to the socket itself; the network thread takes over what the socket does not take. All that
connects, keeps alive, retries and counts is paho's own.

What is overridden are paho's internals: it fits the one version that pyproject.toml pins, and
tests/broker hold it to paho's behaviour.
"""

import threading
import time
from functools import lru_cache
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MessageState, MessageType, MQTTErrorCode
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

READ_AHEAD_BYTES = 4096
"""Enough for the head of a packet and for many small ones; a large body is read past it."""
_PACKET_OVERHEAD_BYTES = 16  # fixed header, topic length, packet id, no properties
_MAX_LENGTH_BYTES = 4  # of the remaining length: MQTT 5.0, section 1.5.5
_QOS = 0x06
_RETAIN = 0x01
_DUP = 0x08
_KIND = 0xF0
_NO_PROPERTIES = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


def packet_bytes(topic: str, payload: bytes | bytearray) -> int:
    """How large a message is on the wire, at most. Topics are ASCII."""
    return len(payload) + len(topic) + _PACKET_OVERHEAD_BYTES


@lru_cache
def _puback_reason(code: int) -> ReasonCode:
    try:
        return ReasonCode(PacketTypes.PUBACK, identifier=code)
    except KeyError as error:
        raise MalformedPacket(f"reason code {code:#x} is none of an acknowledgement's") from error


class PahoClient(mqtt.Client):
    """A :class:`paho.mqtt.client.Client` for MQTT 5 with manual acknowledgement."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._ahead = bytearray(READ_AHEAD_BYTES)
        self._start_reading()
        self._write_lock = threading.RLock()
        """Held by whoever writes to the socket, and while there is another one to be."""
        super().__init__(*arguments, **named)

    def reconnect(self) -> MQTTErrorCode:
        """See paho. Nobody writes meanwhile, and nothing of the old connection is read."""
        with self._write_lock:
            self._start_reading()
            return super().reconnect()

    def drop_larger_than(self, limit_bytes: int) -> list[tuple[int, str, int]]:
        """Forget unacknowledged messages that a broker would not take: number, topic, size of each.

        Called while a connection begins, before paho sends again what it has kept.
        """
        dropped: list[tuple[int, str, int]] = []
        with self._out_message_mutex:
            for mid, message in list(self._out_messages.items()):
                size = packet_bytes(message.topic, message.payload)
                if size > limit_bytes:
                    del self._out_messages[mid]
                    if message.state == MessageState.MQTT_MS_WAIT_FOR_PUBACK:
                        self._inflight_messages -= 1
                    dropped.append((mid, message.topic, size))
            room = len(dropped)
            for message in self._out_messages.values():  # those that queued behind them
                if room and message.state == MessageState.MQTT_MS_QUEUED:
                    message.state = MessageState.MQTT_MS_PUBLISH
                    room -= 1
        return dropped

    # Reading: on the network thread alone.

    def _start_reading(self) -> None:
        self._at = self._end = 0  # what of the read-ahead is still to be taken
        self._head = bytearray()
        self._body: bytearray | None = None
        self._filled = 0

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:  # noqa: ARG002 paho's signature
        """Take what has arrived, and all that was read ahead: no select tells of that."""
        while True:
            if self._sock is None:
                return MQTTErrorCode.MQTT_ERR_NO_CONN
            result = self._packet_read()
            if result == MQTTErrorCode.MQTT_ERR_AGAIN:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            if result > 0:
                return self._loop_rc_handle(result)
            if self._at == self._end:
                return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _packet_read(self) -> MQTTErrorCode:
        """Read on, and handle the packet once it is whole."""
        try:
            complete = self._read_head() and self._read_body()
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_AGAIN
        except MalformedPacket:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        except OSError:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        if not complete:
            return MQTTErrorCode.MQTT_ERR_AGAIN
        assert self._body is not None
        packet, self._body = self._body, None
        self._in_packet["command"] = self._head[0]
        self._in_packet["remaining_length"] = len(packet)
        self._in_packet["packet"] = packet
        self._head = bytearray()
        try:
            return self._packet_handle()
        except MalformedPacket:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        finally:
            self._in_packet["packet"] = bytearray()  # else it would be kept until the next one

    def _read_head(self) -> bool:
        """The fixed header: a command, and the length of the rest in one to four bytes."""
        while self._body is None:
            if self._at == self._end:
                self._end = self._receive(memoryview(self._ahead))
                self._at = 0
            self._head.append(self._ahead[self._at])
            self._at += 1
            if len(self._head) > 1 and not self._head[-1] & 0x80:
                length = sum((b & 0x7F) << 7 * i for i, b in enumerate(self._head[1:]))
                self._body, self._filled = bytearray(length), 0
            elif len(self._head) > _MAX_LENGTH_BYTES:
                raise MalformedPacket("a remaining length of more than four bytes")
        return True

    def _read_body(self) -> bool:
        """The rest; False when the socket has no more of it yet."""
        assert self._body is not None
        size = len(self._body)
        while self._filled < size:
            rest = memoryview(self._body)[self._filled :]
            if self._at < self._end:
                taken = min(len(rest), self._end - self._at)
                rest[:taken] = memoryview(self._ahead)[self._at : self._at + taken]
                self._at += taken
                self._filled += taken
                continue
            got = self._receive(rest)
            self._filled += got
            if got < len(rest):
                return False
        return True

    def _receive(self, into: memoryview) -> int:
        """At least one byte.

        Raises:
            OSError: the connection is closed or lost; BlockingIOError where nothing is there yet.
        """
        if self._sock is None:
            raise ConnectionError("no socket")
        got: int = self._sock.recv_into(into)  # type: ignore[attr-defined]
        if not got:
            raise ConnectionError("closed by the broker")
        with self._msgtime_mutex:
            self._last_bytes_received = time.monotonic()
        return got

    def _handle_publish(self) -> MQTTErrorCode:
        """A message at QoS 0 or 1 without properties goes straight on; all others paho's way."""
        command, packet = self._in_packet["command"], self._in_packet["packet"]
        qos = (command & _QOS) >> 1
        topic_end = 2 + int.from_bytes(packet[:2], "big")
        start = topic_end + (2 if qos else 0) + 1
        if qos > 1 or start > len(packet) or packet[start - 1]:
            return super()._handle_publish()
        mid = int.from_bytes(packet[topic_end : start - 1], "big")
        message = mqtt.MQTTMessage(mid, bytes(packet[2:topic_end]))
        message.qos = qos
        message.dup = bool(command & _DUP)
        message.retain = bool(command & _RETAIN)
        message.payload = bytes(memoryview(packet)[start:])
        message.timestamp = time.monotonic()
        self._handle_on_message(message)  # whoever takes it acknowledges it
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:
        """The broker's acknowledgement of a message; without properties in a few steps."""
        packet = self._in_packet["packet"]
        if cmd != "PUBACK" or not 2 <= len(packet) <= 3:
            return super()._handle_pubackcomp(cmd)
        mid, code = int.from_bytes(packet[:2], "big"), packet[2] if len(packet) > 2 else 0
        with self._out_message_mutex:
            if mid not in self._out_messages:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            return self._do_on_publish(mid, _puback_reason(code), _NO_PROPERTIES)

    # Writing: on any thread.

    def _packet_write(self) -> MQTTErrorCode:
        with self._write_lock:
            return super()._packet_write()

    def _packet_queue(
        self,
        command: int,
        packet: bytes | bytearray,
        mid: int,
        qos: int,
        info: mqtt.MQTTMessageInfo | None = None,
    ) -> MQTTErrorCode:
        """Send a packet now, if nothing is before it; leave what remains to the network thread.

        Only what paho does nothing more about once it is sent: a message at QoS 1 is finished by
        the broker's acknowledgement, ours of a message by nothing.
        """
        view = memoryview(packet)  # paho cuts off what was sent: here that copies nothing
        kind = command & _KIND
        direct = kind == MessageType.PUBACK or (kind == MessageType.PUBLISH and qos == 1)
        if not direct or not self.is_connected() or not self._write_lock.acquire(blocking=False):
            return super()._packet_queue(command, view, mid, qos, info)  # type: ignore[arg-type]
        try:
            if self._out_packet:
                return super()._packet_queue(command, view, mid, qos, info)  # type: ignore[arg-type]
            sent = self._send_now(view)
            if sent < len(view):
                # In front of all that others have queued since: its beginning is on the wire.
                self._out_packet.appendleft(
                    {
                        "command": command,
                        "mid": mid,
                        "qos": qos,
                        "pos": sent,
                        "to_process": len(view) - sent,
                        "packet": view,  # type: ignore[typeddict-item]
                        "info": info,
                    }
                )
                self._wake()
        finally:
            self._write_lock.release()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _send_now(self, view: memoryview) -> int:
        """How many bytes the socket took. A lost connection is the network thread's to find."""
        try:
            sent = self._sock_send(view)  # type: ignore[arg-type]
        except OSError:
            return 0
        with self._msgtime_mutex:
            self._last_msg_out = time.monotonic()
        return sent

    def _wake(self) -> None:
        """Let the network thread look at the queue again."""
        if self._sockpairW is not None and threading.current_thread() is not self._thread:
            try:
                self._sockpairW.send(b"0")
            except BlockingIOError:
                return  # it has been woken often enough
