"""Serves the dashboard over HTTP until it is told to stop: uvicorn on a socket of ours."""

import asyncio
import contextlib
import socket
from typing import NamedTuple

from starlette.types import ASGIApp

from client.dashboard.hub import Hub
from client.http_server import make_server
from contract.errors import SettingsError

DEFAULT_PORT = 8080
MAX_CONNECTIONS = 128
GRACE_S = 2
"""For answers that are being sent when the end comes; streams end at once."""


class Bind(NamedTuple):
    """Where to listen. Port 0: any that is free."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")


def parse_bind(text: str) -> Bind:
    """``host``, ``host:port`` or ``:port`` (every interface); an IPv6 address in brackets.

    Raises:
        SettingsError: not such a text.
    """
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    if not text or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SettingsError(f"--bind {text!r}: expected host:port, for example 127.0.0.1:8080")
    return Bind(host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port))  # noqa: S104


def listen(bind: Bind, option: str = "--bind") -> socket.socket:
    """A socket that listens there; ``option`` is what named the address.

    Raises:
        SettingsError: the address is none of this machine's, or taken.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_CONNECTIONS)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # the latter from names that no host can have
        why = error.strerror if isinstance(error, OSError) else "no host can be called so"
        raise SettingsError(
            f"{option} {bind.host}:{bind.port}: cannot listen there ({why}); choose an "
            "address of this machine and a free port, or port 0 for any"
        ) from error
    return listener


class DashboardServer:
    """Runs the hub and the web server in the thread that calls :meth:`run`."""

    def __init__(self, hub: Hub, app: ASGIApp, listener: socket.socket) -> None:
        self._hub, self._listener = hub, listener
        self._server = make_server(app, MAX_CONNECTIONS, GRACE_S)
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises:
            BrokerError: the broker has refused us something that trying again does not mend.
        """
        asyncio.run(self._serve())

    def stop(self) -> None:
        """End in order: streams first. From any thread, or a signal handler."""
        self._server.should_exit = True
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(self._hub.close)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        looking = asyncio.create_task(self._look())
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            looking.cancel()
            self._listener.close()
        with contextlib.suppress(asyncio.CancelledError):
            await looking

    async def _look(self) -> None:
        try:
            await self._hub.run()
        except BaseException:
            self._hub.close()
            self._server.should_exit = True
            raise
