"""Serves the HTTP interface until it is told to stop: uvicorn on a socket of ours."""

import asyncio
import contextlib
import socket

from client.dashboard.guard import Token
from client.http_server import make_server
from client.serving.app import make_app
from client.serving.engine import Engine

MAX_CONNECTIONS = 512
GRACE_S = 5
"""For answers that are being sent when the end comes; texts that are being written end at once."""


class ApiServer:
    """Runs the web server in the thread that calls :meth:`run`."""

    def __init__(self, engine: Engine, listener: socket.socket, key: Token | None = None) -> None:
        self._engine, self._listener = engine, listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = make_server(make_app(engine, key), MAX_CONNECTIONS, GRACE_S)

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        try:
            asyncio.run(self._serve())
        finally:
            self._listener.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._listener])

    def stop(self) -> None:
        """End in order: texts first. From any thread, or a signal handler."""
        self._server.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                # Not here: a signal may have come while this very thread holds the engine's lock.
                self._loop.call_soon_threadsafe(self._engine.stop)
