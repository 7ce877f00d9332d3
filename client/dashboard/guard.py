"""Who may look: the names by which we answer, the token, and the headers that every answer has.

ASGI middleware without any buffering, so that streams pass.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.errors import SettingsError

COOKIE = "shardline-dashboard"
MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_BYTES = 4096
OPEN_PATHS = ("/healthz", "/login", "/static/")
"""Without a token, too: they tell nothing of the cluster."""
HEADERS = {
    # Everything from this server, no inline script or style, no frame of ours on another's page.
    "content-security-policy": "default-src 'self'; base-uri 'none'; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_trusted_host(host: str, names: frozenset[str]) -> bool:
    """Whether a `Host` header names us: an address, `localhost`, or one of ``names``.

    DNS rebinding needs a name: a page elsewhere points its own name at our address, and the browser
    then takes us for that page's server. An address in the header cannot come about that way.
    Starlette's TrustedHostMiddleware has no pattern for "any address".
    """
    name = host.rpartition("]")[0].removeprefix("[") if host[:1] == "[" else host.partition(":")[0]
    if name.lower() in names or name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Token:
    """What a browser has to know. Never shown in a repr.

    The cookie is derived from it, so that the token itself is in no browser's store.
    """

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self.cookie = hmac.new(self._text, b"cookie of the dashboard", hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return "Token()"

    def is_it(self, text: str) -> bool:
        """Whether ``text`` is the token, in a time that does not depend on it."""
        return secrets.compare_digest(text.encode(), self._text)

    def admits(self, headers: Headers) -> bool:
        """Whether a request carries the cookie, or the token as `Authorization: Bearer`."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_it(given.strip()):
            return True
        # Not by http.cookies: it drops all cookies behind one that it cannot read, and browsers
        # send those of every service on this host.
        given = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return secrets.compare_digest(given.encode(), self.cookie.encode())


def read_or_make_token(file: Path) -> tuple[Token, bool]:
    """The token in ``file``, and whether it was made just now, for its owner only.

    Raises:
        SettingsError: the file cannot be read or made, or its token is too short or too long.
    """
    try:
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as made:
                text = secrets.token_urlsafe(32)
                made.write(text + "\n")
                return Token(text), True
        except FileExistsError:
            with file.open("rb") as there:
                text = there.read(MAX_TOKEN_BYTES + 1).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"--token-file {file}: cannot use it ({why})") from error
    if not MIN_TOKEN_CHARACTERS <= len(text) <= MAX_TOKEN_BYTES:
        raise SettingsError(
            f"--token-file {file}: holds {len(text)} characters, expected at least "
            f"{MIN_TOKEN_CHARACTERS}; remove the file, and a token is made"
        )
    return Token(text), False


class Guard:
    """Turns requests away, and adds :data:`HEADERS` to every answer."""

    def __init__(self, app: ASGIApp, names: frozenset[str], token: Token | None) -> None:
        self._app, self._names, self._token = app, names, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        caching = "no-cache" if scope["path"].startswith("/static/") else "no-store"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", caching)
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        if not is_trusted_host(headers.get("host", ""), self._names):
            return PlainTextResponse(
                "This name is none of the dashboard's: use its address, or --allow-host NAME.\n",
                status_code=421,
            )
        # Another site's page may not even begin a stream: it would take a browser's place.
        if path.startswith("/api/") and headers.get("sec-fetch-site", "none") not in (
            "same-origin",
            "none",
        ):
            return PlainTextResponse("Only for pages of the dashboard itself.\n", status_code=403)
        if self._token is None or path.startswith(OPEN_PATHS) or self._token.admits(headers):
            return None
        if path == "/":
            return Response(status_code=303, headers={"location": "/login"})
        return PlainTextResponse(
            "Not without the token: log in, or send it as `Authorization: Bearer TOKEN`.\n",
            status_code=401,
            headers={"www-authenticate": "Bearer"},
        )
