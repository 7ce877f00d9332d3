"""What a client of the HTTP interface is told when it cannot have what it asks for.

The form is OpenAI's: ``{"error": {"message", "type", "param", "code"}}``, by which their clients
choose the exception that they raise.
"""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

RETRY_AFTER_S = 5


class ApiError(Exception):
    """A refusal of one request. ``param``: the field that it lies in."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        # It may repeat what was asked, which JSON can say and UTF-8 cannot.
        message = message.encode(errors="backslashreplace").decode()
        param = param and param.encode(errors="backslashreplace").decode()
        self.message, self.status, self.kind = message, status, kind
        self.param, self.code = param, code

    def document(self) -> dict[str, Any]:
        """The body of the answer."""
        told = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}

    def response(self) -> JSONResponse:
        """The answer."""
        headers: Mapping[str, str] = {}
        if self.status in (429, 503):
            headers = {"retry-after": str(RETRY_AFTER_S)}
        elif self.status == 408:  # RFC 9110, 15.5.9; what else comes of the body is not waited for
            headers = {"connection": "close"}
        elif self.status == 401:
            headers = {"www-authenticate": "Bearer"}
        return JSONResponse(self.document(), status_code=self.status, headers=headers)


def not_supported(param: str, what: str) -> ApiError:
    """Something of OpenAI's interface that this one has not."""
    return ApiError(
        f"`{param}`: {what} is not supported here; leave it out",
        param=param,
        code="unsupported_parameter",
    )


def unavailable(why: str) -> ApiError:
    """There is nobody now who could answer."""
    return ApiError(why, status=503, kind="server_error", code="service_unavailable")


def busy(why: str) -> ApiError:
    """There is more to do than may wait."""
    return ApiError(why, status=429, kind="rate_limit_error", code="rate_limit_exceeded")


def broken() -> ApiError:
    """A fault of ours. What it was is in the log."""
    return ApiError("the server has failed; its log says how", status=500, kind="server_error")


def failed(why: str) -> ApiError:
    """A text that did not come to its end."""
    return ApiError(why, status=500, kind="server_error", code="generation_failed")
