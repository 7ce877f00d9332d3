"""uvicorn as both of our servers run it: on a socket of ours, and ended by whoever runs it."""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_HEAD_S = 10.0
"""A connection that has not sent the head of a request by then is closed: connections are counted,
and who sends nothing would keep others out. uvicorn itself waits without end for a first one."""


class HeadDeadlineProtocol(H11Protocol):
    """HTTP/1.1 whose connections send a whole request's head in time; single bytes win none."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See :class:`asyncio.Protocol`."""
        super().connection_made(transport)
        self._expect_a_head()

    def on_response_complete(self) -> None:
        """See uvicorn: the connection may be used again."""
        super().on_response_complete()
        self._expect_a_head()

    def _expect_a_head(self) -> None:
        before = self.cycle
        self.loop.call_later(REQUEST_HEAD_S, self._close_unless_asked, before)

    def _close_unless_asked(self, before: object) -> None:
        is_waiting = self.cycle is None or self.cycle.response_complete
        if self.cycle is before and is_waiting and not self.transport.is_closing():
            self.transport.close()


class QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: whoever runs us decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn."""
        yield


def make_server(app: ASGIApp, max_connections: int, grace_s: int) -> QuietServer:
    """A server of ``app`` that says nothing of itself and believes no proxy's headers.

    Args:
        app: what answers.
        max_connections: with more at a time, requests are answered with 503.
        grace_s: for answers that are being sent when the end comes.
    """
    return QuietServer(
        uvicorn.Config(
            app,
            http=HeadDeadlineProtocol,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=max_connections,
            timeout_graceful_shutdown=grace_s,
        )
    )
