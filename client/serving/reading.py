"""What is asked: a body within what the model has room for, and its prompts as tokens."""

import asyncio

from starlette.requests import Request

from client.generation.request import context_of
from client.serving.engine import Ready
from client.serving.errors import ApiError
from client.serving.requests import MAX_CHOICES, ChatRequest, CompletionRequest
from contract.plan import Plan

MAX_BODY_BYTES = 8_000_000
MIN_BODY_BYTES = 64_000
BYTES_OF_A_TOKEN = 64
"""In a body, with whatever JSON makes of it; most take a tenth."""
BODY_TIMEOUT_S = 30.0
"""8 MB in this time are 2 Mbit/s. Connections are counted: a slower body would hold one of them."""


def body_limit(plan: Plan) -> int:
    """Bytes of a body: as many as the longest prompts that this plan has room for may take."""
    fitting = BYTES_OF_A_TOKEN * context_of(plan) * MAX_CHOICES
    return min(max(fitting, MIN_BODY_BYTES), MAX_BODY_BYTES)


async def body_of(request: Request, limit: int) -> bytes:
    """A request's body, of at most ``limit`` bytes.

    Raises:
        ApiError: it is no JSON by its own word, too large, or not there in time.
    """
    # A page elsewhere may send other types without asking first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise ApiError("expected `Content-Type: application/json`", status=415)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise ApiError(
                        f"the body has more than {limit:,} bytes: no prompt that long fits the "
                        "model's context",
                        status=413,
                    )
    except TimeoutError as error:
        raise ApiError(
            f"expected the whole body within {BODY_TIMEOUT_S:g} s, got {len(body):,} bytes",
            status=408,
        ) from error
    return bytes(body)


def check_model(ready: Ready, name: str) -> None:
    """Check that it is the model that runs.

    Raises:
        ApiError: it is not.
    """
    running = ready.plan.name
    if name != running:
        raise ApiError(
            f"there is no model `{name:.100}`: `{running}` runs here",
            status=404,
            param="model",
            code="model_not_found",
        )


def encode_chat(ready: Ready, wanted: ChatRequest) -> list[int]:
    """A dialogue's tokens.

    Raises:
        ApiError: the model has no chat template, or none that can be used.
        PromptError: its template refuses the messages.
        PromptTooLongError: see :meth:`TextTokenizer.encode`.
    """
    if not ready.tokenizer.can_chat:
        raise ApiError(
            f"`{ready.plan.name}` has no chat template that can be used: it does not converse; "
            "use /v1/completions",
            param="messages",
            code="invalid_value",
        )
    messages = [message.as_template() for message in wanted.messages]
    return ready.tokenizer.encode_chat(messages, context_of(ready.plan))


def encode_texts(ready: Ready, wanted: CompletionRequest) -> list[list[int]]:
    """Each prompt's tokens.

    Raises:
        ApiError: too many texts are wanted.
        PromptTooLongError: see :meth:`TextTokenizer.encode`.
    """
    prompts = wanted.prompts
    if not 1 <= len(prompts) * wanted.n <= MAX_CHOICES:
        raise ApiError(
            f"{len(prompts)} prompts with {wanted.n} answers each: expected 1 to {MAX_CHOICES} "
            "answers in all",
            param="prompt",
            code="invalid_value",
        )
    at_most = context_of(ready.plan)
    return [ready.tokenizer.encode(p, at_most) if isinstance(p, str) else p for p in prompts]
