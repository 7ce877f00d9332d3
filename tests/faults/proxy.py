"""A TCP proxy in front of the broker: what a bad network does, done at a moment of our choosing.

Stands in for iptables and netem, which a kernel may lack. Threads, one to read and one to write for
each direction of each connection: a pipeline under test has few of them.
"""

import contextlib
import queue
import random
import socket
import struct
import threading
import time

CHUNK_BYTES = 65536
LOST_SEGMENT_S = 0.2
"""What TCP's user sees of a lost segment: silence for the retransmission timeout."""
Parcel = tuple[float, bytes]


class Proxy:
    """Forwards a port of ours to the broker's."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self.delay_s, self.bytes_per_s, self.loss = 0.0, 0.0, 0.0
        self.is_cut = False
        self.accepted = 0
        threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.is_cut:
                    raise ConnectionError("no cable")
                far = socket.create_connection(self._target, timeout=2)
            except OSError:
                _reset(near)
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                self._pairs = [pair for pair in self._pairs if not pair.is_over]
                self._pairs.append(_Pair(self, near, far))

    def pairs(self) -> "list[_Pair]":
        with self._lock:
            return [pair for pair in self._pairs if not pair.is_over]

    def reset(self) -> int:
        """End every connection with RST at both ends; how many there were."""
        pairs = self.pairs()
        for pair in pairs:
            pair.reset()
        return len(pairs)

    def swallow(self, upward: bool) -> int:
        """Let nothing more through in one direction of every connection; nobody is told."""
        pairs = self.pairs()
        for pair in pairs:
            (pair.up if upward else pair.down).is_black = True
        return len(pairs)

    def cut(self) -> None:
        """The cable is out: nothing comes through, and nobody can connect."""
        self.is_cut = True
        for pair in self.pairs():
            pair.up.is_black = pair.down.is_black = True

    def mend(self) -> None:
        """The cable is in again. Connections of before stay dead until somebody gives them up."""
        self.is_cut = False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()


class _Pair:
    """One connection: towards the broker is up."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self._near, self._far = near, far
        self.is_over = False
        self.up = _Direction(proxy, self, near, far)
        self.down = _Direction(proxy, self, far, near)

    def reset(self) -> None:
        self.is_over = True
        _reset(self._near)
        _reset(self._far)

    def close(self) -> None:
        self.is_over = True
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class _Direction:
    """Reads at one end and writes at the other, late if the proxy says so."""

    def __init__(self, proxy: Proxy, pair: _Pair, source: socket.socket, to: socket.socket) -> None:
        self._proxy, self._pair, self._source, self._to = proxy, pair, source, to
        self.is_black = False
        self._parcels: queue.Queue[Parcel | None] = queue.Queue(maxsize=256)
        self._free_at = 0.0
        self._random = random.Random(proxy.port)
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = self._source.recv(CHUNK_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            if not self.is_black:
                self._parcels.put((self._due(len(data)), data))
        self._parcels.put(None)

    def _due(self, size: int) -> float:
        proxy, now = self._proxy, time.monotonic()
        if not (proxy.delay_s or proxy.bytes_per_s or proxy.loss):
            return now
        self._free_at = max(self._free_at, now)
        if proxy.bytes_per_s:
            self._free_at += size / proxy.bytes_per_s
        if self._random.random() < proxy.loss:
            self._free_at += LOST_SEGMENT_S  # what comes behind it waits, too
        return self._free_at + proxy.delay_s

    def _write(self) -> None:
        while (parcel := self._parcels.get()) is not None:
            due, data = parcel
            wait_s = due - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            if self.is_black:
                continue
            try:
                self._to.sendall(data)
            except OSError:
                break
        if not self.is_black:  # else nobody at the other end would hear of it
            self._pair.close()
        while self._parcels.qsize():  # a reader that waits for room must come to its end
            self._parcels.get_nowait()


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RD)
        end.close()
