"""Sends pieces of shards to devices, as fast as the broker takes them and no faster.

They travel at QoS 0, which no acknowledgement slows down: a device that asks for more than its link
carries would fill the planner's memory. It is made to wait instead.
"""

from collections import deque
from concurrent.futures import Future
from contextlib import suppress

from broker.transport import Connection, PublishOutcome
from contract import topics
from contract.blob import BlobChunk, BlobRefusal, BlobRequest, encode_chunk
from contract.errors import MessageTooLargeError, ShardlineError
from shards.source import ShardSource

MAX_UNSENT = 16
"""Chunks that wait to be written to the broker."""
UNSENT_PATIENCE_S = 5.0


class ChunkSender:
    """Answers requests for the files of ``source``, which its owner may replace. One thread."""

    def __init__(self, connection: Connection, cluster: str, name: str) -> None:
        """``name`` is ours."""
        self._connection, self._cluster, self._name = connection, cluster, name
        self._unsent: deque[Future[PublishOutcome]] = deque()
        self.source = ShardSource({})

    def serve(self, request: BlobRequest, device: str) -> None:
        """Send what was asked for, or why not."""
        answer = self.source.answer(request)
        payload = (
            encode_chunk(answer)
            if isinstance(answer, BlobChunk)
            else answer.model_dump_json().encode()
        )
        while self._unsent and (self._unsent[0].done() or len(self._unsent) >= MAX_UNSENT):
            with suppress(ShardlineError, TimeoutError):  # what is lost, the device asks for again
                self._unsent.popleft().result(timeout=UNSENT_PATIENCE_S)
        topic = topics.blob_topic(self._cluster, device, self._name)
        try:
            future = self._connection.publish(topic, payload, qos=0)
        except MessageTooLargeError as error:  # its problem, not that of the other devices
            refusal = BlobRefusal(sha256=request.sha256, detail=str(error))
            future = self._connection.publish(topic, refusal.model_dump_json().encode(), qos=0)
        self._unsent.append(future)
