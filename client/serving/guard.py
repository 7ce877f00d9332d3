"""Who may ask: whoever knows the key, or without one whoever calls this machine by an address.

ASGI middleware without any buffering, so that streams pass.
"""

from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from client.dashboard.guard import Token, is_trusted_host
from client.serving.errors import ApiError
from contract.errors import SettingsError

MIN_KEY_CHARACTERS = 16
MAX_KEY_BYTES = 4096
OPEN_PATHS = ("/health",)


def read_key(file: Path) -> Token:
    """The key in ``file``.

    Raises:
        SettingsError: it cannot be read, or its key is too short or too long.
    """
    try:
        with file.open("rb") as there:
            text = there.read(MAX_KEY_BYTES + 1).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"--api-key-file {file}: cannot read it ({why})") from error
    if not MIN_KEY_CHARACTERS <= len(text) <= MAX_KEY_BYTES:
        raise SettingsError(
            f"--api-key-file {file}: holds {len(text)} characters, expected at least "
            f"{MIN_KEY_CHARACTERS}, as `openssl rand -hex 32` gives"
        )
    return Token(text)


class Guard:
    """Turns requests away."""

    def __init__(self, app: ASGIApp, key: Token | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal.response()(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        if self._key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and self._key.is_it(given.strip()):
                return None
            return ApiError(
                "no key, or a wrong one: send it as `Authorization: Bearer KEY`",
                status=401,
                code="invalid_api_key",
            )
        # A page elsewhere may point its own name at our address; it does not know a key.
        if not is_trusted_host(headers.get("host", ""), frozenset()):
            return ApiError(
                "without --api-key-file this server answers to its address and to localhost only",
                status=421,
            )
        return None
