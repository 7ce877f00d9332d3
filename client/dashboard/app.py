"""The dashboard as an ASGI application: the page, its files, one view, and a stream of them.

    GET  /             the page (with a token: the log-in page first)
    GET  /static/…     its script, style and icon
    GET  /api/view     one client.dashboard.messages.ViewMessage, with history
    GET  /api/stream   the same as server-sent events: one with history, then one a second
    GET  /healthz      200 while the dashboard looks at the cluster, broker or not
    POST /login        takes the token, gives a cookie

It reads only: nothing that a browser sends reaches the broker.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from client.dashboard.guard import COOKIE, MAX_TOKEN_BYTES, Guard, Token
from client.dashboard.hub import Hub, TooManyBrowsersError

STATIC = Path(__file__).parent / "static"
UNHEALTHY_AFTER_S = 5.0
RETRY_MS = 2000
"""How soon a browser comes back to a stream that ended."""


def make_app(
    hub: Hub, *, token: Token | None = None, allowed_hosts: frozenset[str] = frozenset()
) -> Starlette:
    """The application; the hub is run by whoever serves it.

    Args:
        hub: what the answers come from.
        token: whom to let in; None for everybody.
        allowed_hosts: names by which it answers, besides addresses and `localhost`.
    """

    async def page(_request: Request) -> Response:
        return _file("index.html")

    async def login_page(_request: Request) -> Response:
        return _file("login.html")

    async def login(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > 2 * MAX_TOKEN_BYTES:
                return Response(status_code=413)
        given = parse_qs(body.decode(errors="replace")).get("token", [""])[0].strip()
        if token is not None and not token.is_it(given):
            return Response(status_code=303, headers={"location": "/login?wrong"})
        response = Response(status_code=303, headers={"location": "/"})
        if token is not None:
            response.set_cookie(COOKIE, token.cookie, httponly=True, samesite="strict")
        return response

    async def view(_request: Request) -> Response:
        return Response(hub.full(), media_type="application/json")

    async def stream(_request: Request) -> Response:
        if hub.is_full:
            return PlainTextResponse(
                "Too many browsers look at this dashboard already.\n",
                status_code=503,
                headers={"retry-after": "30"},
            )

        async def events() -> AsyncIterator[str]:
            with suppress(TooManyBrowsersError), hub.subscribe() as mailbox:
                yield f"retry: {RETRY_MS}\n{_event(hub.full())}"
                while (message := await mailbox.get()) is not None:
                    yield _event(message)

        return StreamingResponse(
            events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    async def healthz(_request: Request) -> Response:
        well = hub.age_s < UNHEALTHY_AFTER_S
        return JSONResponse({"ok": well}, status_code=200 if well else 503)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/login", login_page),
            Route("/login", login, methods=["POST"]),
            Route("/api/view", view),
            Route("/api/stream", stream),
            Route("/healthz", healthz),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, names=allowed_hosts, token=token)],
    )


def _event(document: str) -> str:
    """A server-sent event; JSON of pydantic has no line feeds."""
    return f"event: view\ndata: {document}\n\n"


def _file(name: str) -> Response:
    return FileResponse(
        STATIC / name, media_type="text/html", headers={"cache-control": "no-cache"}
    )
