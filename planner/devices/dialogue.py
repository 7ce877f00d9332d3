"""The planner's talk with one device: ask, wait for the answer, hand out a file on the way.

Each device has a thread of its own at the planner. The network thread only enqueues.
"""

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from broker.transport import Connection, Delivery
from contract import topics
from contract.blob import BlobRequest, parse_blob
from contract.command import (
    MAX_COMMAND_BYTES,
    Command,
    Fetch,
    FetchProgress,
    parse_command,
)
from contract.errors import DeliveryError, ShardError, WireFormatError
from contract.fleet import FleetView
from planner.chunks import ChunkSender
from shards.source import ShardSource

ASK_AGAIN_S = 5.0
"""A device that works on it says so every two seconds: one that is silent lost the request."""
MAX_WAITING = 64
_POLL_S = 0.1

Answer = TypeVar("Answer")


class Dialogue:
    """One device. One thread asks; :meth:`on_delivery` is the network thread's."""

    def __init__(
        self,
        connection: Connection,
        cluster: str,
        name: str,
        device: str,
        fleet: FleetView,
        stopping: threading.Event,
    ) -> None:
        """``name`` is ours; ``stopping`` ends every wait."""
        self._connection, self._cluster, self._name = connection, cluster, name
        self.device, self._fleet, self._stopping = device, fleet, stopping
        self._inbox: queue.Queue[Delivery] = queue.Queue(MAX_WAITING)
        self._chunks = ChunkSender(connection, cluster, name)

    def on_delivery(self, delivery: Delivery) -> None:
        """An answer or blob message of this device. What is too large, or too much, is dropped."""
        delivery.ack()
        if len(delivery.payload) <= MAX_COMMAND_BYTES and not self._inbox.full():
            self._inbox.put_nowait(delivery)

    def ask(self, request: Command, expected: type[Answer], patience_s: float) -> Answer:
        """Send a request and wait for the answer of a class that carries its id.

        Raises:
            DeliveryError: see :meth:`wait_for`.
        """
        return self.wait_for(
            request, lambda message: message if isinstance(message, expected) else None, patience_s
        )

    def wait_for(
        self, request: Command, accept: Callable[[Command], Answer | None], patience_s: float
    ) -> Answer:
        """Send a request, and again while the device is silent, until an answer is accepted.

        Args:
            request: what to ask.
            accept: called with every message that carries the request's id; None waits for more.
            patience_s: how long the device may be silent.

        Raises:
            DeliveryError: no answer, or the device was restarted meanwhile.
        """
        boot = self._boot()
        heard_s = asked_s = time.monotonic()
        self._send(request)
        while not self._stopping.is_set():
            message = self._next()
            now_s = time.monotonic()
            if message is not None and message.request_id == request.request_id:
                heard_s = now_s
                answer = accept(message)
                if answer is not None:
                    return answer
            if now_s - heard_s > patience_s:
                raise DeliveryError(
                    f"device {self.device} has not answered for {patience_s:g} s (it is "
                    f"{self._fleet.describe(self.device)}); look at the log of its `shardline "
                    "stage`, and whether it runs the same version"
                )
            if boot is not None and self._boot() != boot:
                raise DeliveryError(
                    f"device {self.device} was started again before it answered; look at its log: "
                    "it may have run out of memory"
                )
            if now_s - max(heard_s, asked_s) > ASK_AGAIN_S:
                asked_s = now_s
                self._send(request)
        raise DeliveryError("stopped")

    def hand_out(self, path: Path, fetch: Fetch, patience_s: float) -> None:
        """Let the device fetch the one file of ``fetch``, which lies at ``path``.

        Raises:
            ShardError: the device cannot keep it.
            DeliveryError: it does not answer.
        """

        def finished(message: Command) -> FetchProgress | None:
            if not isinstance(message, FetchProgress):
                return None
            if message.error is not None:
                raise ShardError(f"device {self.device}: {message.error}")
            return message if message.finished else None

        self._chunks.source = ShardSource({fetch.files[0].sha256: path})
        try:
            self.wait_for(fetch, finished, patience_s)
        finally:
            self._chunks.source = ShardSource({})

    def _boot(self) -> int | None:
        """Which start of the agent is online; None while it is not, which may pass."""
        status = self._fleet.get(self.device)
        return status.boot if status is not None else None

    def _send(self, request: Command) -> None:
        topic = topics.command_topic(self._cluster, self.device, self._name)
        self._connection.publish(topic, request.model_dump_json().encode())

    def _next(self) -> Command | None:
        """The next answer of the device, if one comes soon; requests for files are served."""
        try:
            delivery = self._inbox.get(timeout=_POLL_S)
        except queue.Empty:
            return None
        try:
            if topics.parse_topic(delivery.topic).kind == "answer":
                return parse_command(delivery.payload)
            request = parse_blob(delivery.payload)
            if isinstance(request, BlobRequest):
                self._chunks.serve(request, self.device)
        except WireFormatError:
            pass  # somebody else's message on a topic of ours tells us nothing
        return None
