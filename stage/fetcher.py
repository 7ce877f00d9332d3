"""Gets shard files for the cache in a thread of its own, while the stage goes on with its batches.

The network thread only enqueues; what it cannot enqueue is dropped, and asked for again.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from broker.transport import Connection, Delivery, PublishOutcome
from contract import topics
from contract.blob import (
    HEADER_BYTES,
    MAX_CHUNK_BYTES,
    BlobChunk,
    BlobRefusal,
    BlobRequest,
    parse_blob,
)
from contract.command import Fetch, FetchProgress
from contract.errors import ShardError, ShardHashMismatchError, ShardlineError, WireFormatError
from contract.plan import ShardFile
from contract.status import EventKind
from shards.cache import ShardCache
from shards.download import Download

MAX_WAITING_CHUNKS = 32
PROGRESS_INTERVAL_S = 0.5
GIVE_UP_S = 90.0
"""Without a byte for so long, while the broker is there: nobody hands this shard out any more."""
FORGET_S = 600.0
"""Without a broker for so long, whoever asked has given up."""
TRIES = 2
"""A file whose bytes are wrong at its end is fetched once more: it may have been damaged here."""
_POLL_S = 0.1

log = logging.getLogger(__name__)
Holds = Callable[[Fetch], bool]


class _AbandonedError(ShardError):
    """A newer request or the end of the agent: nobody is told."""


class Fetcher:
    """One at a time: a newer request replaces the one in work, whose beginning stays on disk."""

    def __init__(
        self,
        cluster: str,
        device: str,
        connection: Connection,
        cache: ShardCache,
        holds: Holds,
        report: Callable[[EventKind, str], None],
    ) -> None:
        """``holds`` tells whether the shard is here already, outside the cache."""
        self._cluster, self._device = cluster, device
        self._connection, self._cache, self._holds = connection, cache, holds
        self._report = report
        self._jobs: queue.SimpleQueue[tuple[Fetch, str] | None] = queue.SimpleQueue()
        self._chunks: queue.Queue[Delivery] = queue.Queue(MAX_WAITING_CHUNKS)
        self._in_use: frozenset[str] = frozenset()
        self._stopping = threading.Event()
        self._current = self._gone = ""  # request ids: in work, and whose asker is gone
        self._newest_asker = self._asker = ""
        self._thread = threading.Thread(target=self._serve, name="fetcher", daemon=True)

    def start(self) -> None:
        """Begin to serve requests."""
        self._thread.start()

    def close(self) -> None:
        """Leave off; what is on disk stays for the next start."""
        self._stopping.set()
        self._jobs.put(None)
        self._thread.join(timeout=5)

    def request(self, fetch: Fetch, asker: str) -> None:
        """Fetch these files from ``asker``, soon. Never waits. Asked again meanwhile: no matter."""
        if fetch.request_id != self._current:
            self._newest_asker = asker
            self._jobs.put((fetch, asker))

    def use(self, files: frozenset[str]) -> None:
        """These files are in memory or about to be: they stay in the cache."""
        self._in_use = files

    def on_blob(self, delivery: Delivery) -> None:
        """Called on the network thread with every blob message for this device.

        What strangers send takes nobody's place in the queue.
        """
        delivery.ack()  # kept nowhere: what is lost is asked for again
        if not self._current or len(delivery.payload) > HEADER_BYTES + MAX_CHUNK_BYTES:
            return  # nobody asked for it
        sender = topics.parse_topic(delivery.topic).sender
        if sender != self._asker:
            detail = f"{delivery.topic}: expected it from {self._asker}, got it from {sender}"
            self._report(EventKind.MESSAGE_REJECTED, detail)
            return
        try:
            self._chunks.put_nowait(delivery)
        except queue.Full:
            log.debug("a chunk was dropped: the disk is slower than the network")

    def _serve(self) -> None:
        while not self._stopping.is_set():
            job = self._jobs.get()
            if job is None or not self._jobs.empty():
                continue  # only the newest request counts
            fetch, asker = job
            self._asker = asker  # before the next line lets chunks in
            self._current, self._gone = fetch.request_id, ""
            try:
                self._fetch(fetch, asker)
            except _AbandonedError as error:
                log.info("fetch of plan %s: %s", fetch.plan_id, error)
                if self._newest_asker not in ("", asker):  # else both would ask for ever
                    taken = f"{self._device} now fetches for {self._newest_asker}; publish later"
                    self._answer(fetch, asker, 0, error=taken)
            except ShardlineError as error:
                self._report(EventKind.SHARD_FAILED, str(error))
                self._answer(fetch, asker, 0, error=str(error)[:2000])
            except Exception as error:
                log.exception("a fetch was given up")
                self._report(EventKind.SHARD_FAILED, f"{type(error).__name__}: {error}")
                self._answer(fetch, asker, 0, error=f"{type(error).__name__}: {error}"[:2000])
            finally:
                self._current = ""

    def _fetch(self, fetch: Fetch, asker: str) -> None:
        self._forget_waiting_chunks()
        total = sum(file.size_bytes for file in fetch.files)
        if not self._holds(fetch):
            self._cache.make_room(fetch.files, lambda: self._in_use)
            done = 0
            for file in fetch.files:
                if not self._cache.has(file):
                    self._get(fetch, asker, file, done)
                done += file.size_bytes
        self._answer(fetch, asker, total, finished=True)

    def _get(self, fetch: Fetch, asker: str, file: ShardFile, done: int) -> None:
        for attempt in range(TRIES):
            self._answer(fetch, asker, done)  # before its beginning is hashed, which takes a while
            try:
                with Download(file, self._cache.partial(file)) as download:
                    self._receive(fetch, asker, file, download, done)
                    self._answer(fetch, asker, done + download.written_bytes)  # and a full disk
                    download.verify()
                self._cache.keep(file)
                return
            except ShardHashMismatchError as error:
                self._report(EventKind.MESSAGE_REJECTED, f"shard from {asker}: {error}")
                if attempt + 1 == TRIES:
                    raise

    def _receive(
        self, fetch: Fetch, asker: str, file: ShardFile, download: Download, done: int
    ) -> None:
        last_progress_s = last_bytes_s = last_connected_s = time.monotonic()
        while not download.is_whole:
            now_s = time.monotonic()
            self._check_wanted(fetch, now_s - last_bytes_s, asker)
            connected = self._connection.is_connected
            if connected:
                last_connected_s = now_s
                self._send(asker, download.due(now_s))
            elif now_s - last_connected_s < FORGET_S:
                last_bytes_s = now_s  # time without a broker is nobody's fault
            else:
                raise _AbandonedError("the broker is away; the planner will ask again")
            before = download.written_bytes
            chunk = self._next_chunk(asker, file)
            if chunk is not None:
                self._send(asker, download.accept(chunk, time.monotonic()))
            if download.written_bytes > before:
                last_bytes_s = time.monotonic()
            if connected and now_s - last_progress_s > PROGRESS_INTERVAL_S:
                last_progress_s = now_s
                self._answer(fetch, asker, done + download.written_bytes)

    def _check_wanted(self, fetch: Fetch, silent_s: float, asker: str) -> None:
        if self._stopping.is_set() or not self._jobs.empty():
            raise _AbandonedError("replaced by a newer request, or the agent ends")
        if self._gone == fetch.request_id:
            raise _AbandonedError(f"{asker} is gone")
        if silent_s > GIVE_UP_S:
            raise ShardError(
                f"no bytes from {asker} for {GIVE_UP_S:.0f} s; run `shardline publish` again: it "
                "goes on where it was"
            )

    def _forget_waiting_chunks(self) -> None:
        """Answers to an earlier fetch, its refusals among them, say nothing about this one."""
        with suppress(queue.Empty):
            while True:
                self._chunks.get_nowait()

    def _next_chunk(self, asker: str, file: ShardFile) -> BlobChunk | None:
        """The next message of ``asker`` for this file, if one comes soon.

        Raises:
            ShardError: the asker refuses to hand the file out.
        """
        try:
            delivery = self._chunks.get(timeout=_POLL_S)
        except queue.Empty:
            return None
        try:
            sender = topics.parse_topic(delivery.topic).sender
            if sender != asker:  # whoever asked before
                raise WireFormatError(f"expected it from {asker}, got it from {sender}")
            message = parse_blob(delivery.payload)
        except WireFormatError as error:
            self._report(EventKind.MESSAGE_REJECTED, f"{delivery.topic}: {error}")
            return None
        if isinstance(message, BlobRefusal) and message.sha256 == file.sha256:
            raise ShardError(f"{asker} does not hand out {file.sha256[:16]}…: {message.detail}")
        return message if isinstance(message, BlobChunk) else None

    def _send(self, asker: str, requests: list[BlobRequest]) -> None:
        topic = topics.blob_topic(self._cluster, asker, self._device)
        for request in requests:
            self._connection.publish(topic, request.model_dump_json().encode(), qos=0)

    def _answer(
        self,
        fetch: Fetch,
        asker: str,
        done: int,
        *,
        finished: bool = False,
        error: str | None = None,
    ) -> None:
        progress = FetchProgress(
            request_id=fetch.request_id,
            done_bytes=done,
            total_bytes=sum(file.size_bytes for file in fetch.files),
            finished=finished,
            error=error,
        )
        topic = topics.answer_topic(self._cluster, asker, self._device)
        try:
            future = self._connection.publish(topic, progress.model_dump_json().encode())
        except ShardlineError as failure:
            log.warning("progress not told: %s", failure)
            return
        future.add_done_callback(partial(self._told, fetch.request_id))

    def _told(self, request_id: str, future: Future[PublishOutcome]) -> None:
        """A planner that went away and comes back asks again: until then nobody waits for us."""
        if future.exception() is None and future.result() is PublishOutcome.NO_SUBSCRIBER:
            self._gone = request_id
