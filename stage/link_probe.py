"""Times a device's way to the broker with messages to itself, as large as activations can be.

The messages travel on the device's own blob topic, which it may both write and read. What is to go
up only is sent to a name that nobody has: the broker acknowledges it and drops it. (Sent to
ourselves, the acknowledgement would wait behind the message's own way back.)
"""

import logging
import queue
import secrets
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from broker.transport import Connection, Delivery, PublishOutcome
from contract import topics
from contract.activation import BatchId, Header, decode, encode
from contract.command import LinkProbe, ProbeLink
from contract.errors import (
    BrokerUnreachableError,
    MessageTooLargeError,
    ShardlineError,
    WireFormatError,
)

PATIENCE_S = 10.0
"""A message that is not back by then is lost, or the link is too slow to be of use."""
FIRST_BYTES = 64 * 1024
"""The first large message: it tells how large the others may be in the time that there is."""
IN_FLIGHT = 3
"""As many as a stage's receive maximum: more would wait at the broker."""
MAX_SMALL = 400
LARGE_SHARE = 0.05
"""At most this share of the time for one large message, so that several fit."""
SPIN_S = 0.3
"""Longer than the 100 ms in which the kernel hands out a container's share of the processor."""

log = logging.getLogger(__name__)


class Through(NamedTuple):
    """Messages that came back while others went out: bytes a second, processor's ms for each."""

    bytes_per_s: float
    processor_ms: float


class LinkProber:
    """One probe at a time, in a thread of its own."""

    def __init__(
        self, cluster: str, device: str, connection: Connection, holds_shard: Callable[[], bool]
    ) -> None:
        self._cluster, self._device, self._connection = cluster, device, connection
        self._holds_shard = holds_shard
        self._busy = threading.Lock()
        self._arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._request_id = ""
        self._epoch = self._seq = 0
        self._largest = 0  # of what is on its way: nothing larger is taken in
        self._stopping = threading.Event()

    def request(self, probe: ProbeLink, asker: str) -> None:
        """Begin; while another probe runs, say so. Never waits."""
        if not self._busy.acquire(blocking=False):
            if self._request_id == probe.request_id:
                return  # asked twice: the answer will come
            taken = f"{self._device} is probing its link already; ask again later"
            self._answer(asker, LinkProbe(request_id=probe.request_id, error=taken))
            return
        self._request_id = probe.request_id
        threading.Thread(
            target=self._work, args=(probe, asker), name="link-probe", daemon=True
        ).start()

    def close(self) -> None:
        """Give up what is under way."""
        self._stopping.set()

    def on_blob(self, delivery: Delivery) -> None:
        """Called on the network thread with every blob message that this device sent to itself."""
        delivery.ack()
        if self._epoch and len(delivery.payload) <= self._largest:
            self._arrived.put(delivery.payload)

    def _work(self, probe: ProbeLink, asker: str) -> None:
        busy = self._holds_shard()
        try:
            self._epoch = secrets.randbits(63) | 1
            answer = self._through_only(probe) if probe.only_through else self._probe(probe)
        except ShardlineError as error:
            answer = LinkProbe(request_id=probe.request_id, error=str(error)[:2000])
        except Exception as error:
            log.exception("a probe of the link was given up")
            detail = f"{type(error).__name__}: {error}"[:2000]
            answer = LinkProbe(request_id=probe.request_id, error=detail)
        finally:
            self._epoch = self._largest = 0
            while not self._arrived.empty():
                self._arrived.get()
            self._busy.release()
        self._answer(asker, answer.model_copy(update={"busy": busy or self._holds_shard()}))

    def _answer(self, asker: str, message: LinkProbe) -> None:
        topic = topics.answer_topic(self._cluster, asker, self._device)
        try:
            self._connection.publish(topic, message.model_dump_json().encode())
        except ShardlineError as error:
            log.warning("%s was not answered: %s", asker, error)

    def _through_only(self, probe: ProbeLink) -> LinkProbe:
        size = self._fitting_size(probe)
        through = self._through(size, probe.seconds)
        return LinkProbe(request_id=probe.request_id, through_bytes_per_s=through.bytes_per_s)

    def _probe(self, probe: ProbeLink) -> LinkProbe:
        share = processor_share(min(SPIN_S, probe.seconds / 5))
        small_ms = self._there_and_back(probe.small_bytes, probe.seconds * 0.1, least=5)
        size = self._fitting_size(probe)
        up = self._up(size, probe.seconds * 0.2, small_ms)
        large_ms = self._there_and_back(size, probe.seconds * 0.2, least=2)
        small = self._through(probe.small_bytes, probe.seconds * 0.15)
        large = self._through(size, probe.seconds * 0.25)
        up = max(up, large.bytes_per_s)
        byte_ms = max(0.0, (large.processor_ms - small.processor_ms) / (size - probe.small_bytes))
        message_ms = max(0.0, small.processor_ms - byte_ms * probe.small_bytes)
        return LinkProbe(
            request_id=probe.request_id,
            up_bytes_per_s=up,
            down_bytes_per_s=max(large.bytes_per_s, down_rate(size, large_ms, small_ms, up)),
            through_bytes_per_s=large.bytes_per_s,
            latency_ms=small_ms / 2,
            message_ms=message_ms / share,
            byte_ms=byte_ms / share,
            processor_share=share,
        )

    def _fitting_size(self, probe: ProbeLink) -> int:
        """The largest size that is allowed, that the broker takes, and that is quick enough."""
        first = min(FIRST_BYTES, probe.large_bytes)
        took_ms = self._there_and_back(first, 0.0, least=1)
        per_byte_ms = took_ms / first
        quick = int(LARGE_SHARE * probe.seconds * 1e3 / max(per_byte_ms, 1e-9))
        size = min(probe.large_bytes, max(first, quick))
        try:
            self._there_and_back(size, 0.0, least=1)
        except MessageTooLargeError as error:
            # What the broker takes, less than that for what stands around the tensor.
            size = min(size, max(first, error.limit_bytes - 4096))
        return size

    def _there_and_back(self, size: int, seconds: float, least: int) -> float:
        """Median ms of messages that go out when the one before is back."""
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < least or (
            time.perf_counter() - started < seconds and len(times) < MAX_SMALL
        ):
            began = time.perf_counter()
            self._send(self._device, size)
            self._receive()
            times.append((time.perf_counter() - began) * 1e3)
        return statistics.median(times)

    def _up(self, size: int, seconds: float, round_trip_ms: float) -> float:
        """Bytes a second from here to the broker, which drops them."""
        nobody = f"nobody-{self._epoch:016x}"
        waiting: deque[Future[PublishOutcome]] = deque()
        sent, started = 0, time.perf_counter()
        while sent < IN_FLIGHT or time.perf_counter() - started < seconds:
            if len(waiting) == IN_FLIGHT:
                _wait_for(waiting.popleft())
            waiting.append(self._send(nobody, size))
            sent += 1
        while waiting:
            _wait_for(waiting.popleft())
        took_s = time.perf_counter() - started - round_trip_ms / 1e3
        return sent * size / max(took_s, 1e-6)

    def _through(self, size: int, seconds: float) -> Through:
        """What passes there and back with both directions in use, as in a pipeline at full load."""
        for _ in range(IN_FLIGHT):
            self._send(self._device, size)
        self._receive()  # from here on the way is full
        received, started, processor_s = 0, time.perf_counter(), time.process_time()
        while received < IN_FLIGHT or time.perf_counter() - started < seconds:
            self._send(self._device, size)
            self._receive()
            received += 1
        took_s, processor_s = time.perf_counter() - started, time.process_time() - processor_s
        for _ in range(IN_FLIGHT - 1):
            self._receive()
        return Through(received * size / max(took_s, 1e-6), processor_s / received * 1e3)

    def _send(self, to: str, size: int) -> "Future[PublishOutcome]":
        """One message with a tensor of so many bytes, made as a stage makes its outputs."""
        self._seq += 1
        header = Header(
            plan_id="0" * 16,
            batch_id=BatchId(self._epoch, self._seq),
            attempt=0,
            low=0,
            stage_index=0,
            route=(self._device,),
            client=self._device,
            sent_us=0,
        )
        payload = encode(header, {"probe": np.zeros(size, np.uint8)})
        self._largest = max(self._largest, len(payload))
        topic = topics.blob_topic(self._cluster, to, self._device)
        return self._connection.publish(topic, payload)

    def _receive(self) -> None:
        """Wait for one of our messages, and check it as a stage does."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            left_s = deadline - time.monotonic()
            try:
                payload = self._arrived.get(timeout=max(0.0, left_s))
            except queue.Empty:
                raise BrokerUnreachableError(
                    f"{self._device}: a message to itself was not back within {PATIENCE_S:g} s; "
                    "look at the link to the broker"
                ) from None
            if self._stopping.is_set():
                raise BrokerUnreachableError(f"the agent of {self._device} ends")
            try:
                header = decode(payload, self._largest).header
            except WireFormatError:
                continue  # somebody else's
            if header.batch_id.epoch == self._epoch:
                return


def down_rate(size: int, large_ms: float, small_ms: float, up_bytes_per_s: float) -> float:
    """Bytes a second from the broker: what of a large message's way is not latency nor the way up.

    The broker passes a message on when it has all of it, so the two ways follow each other. Noise
    cannot make the way back shorter than a twentieth of the whole. Pure.
    """
    back_ms = large_ms - small_ms - size / up_bytes_per_s * 1e3
    return size / max(back_ms, 0.05 * large_ms) * 1e3


def processor_share(seconds: float) -> float:
    """How much of one processor this process gets when it wants all of it, at most 1."""
    started, processor_s = time.perf_counter(), time.process_time()
    while (wall_s := time.perf_counter() - started) < seconds:
        pass
    return min(1.0, max(0.01, (time.process_time() - processor_s) / wall_s))


def _wait_for(future: "Future[PublishOutcome]") -> None:
    try:
        future.result(timeout=PATIENCE_S)
    except TimeoutError:
        raise BrokerUnreachableError(
            f"the broker did not acknowledge a message within {PATIENCE_S:g} s"
        ) from None
