"""The HTTP interface as an ASGI application: the part of OpenAI's that texts need.

GET  /v1/models, /v1/models/{id}   the one model that runs
POST /v1/chat/completions          a dialogue's next turn, whole or as a stream of events
POST /v1/completions               a text's continuation, likewise
GET  /health                       200 while a model can be asked, 503 otherwise
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from client.dashboard.guard import Token
from client.generation.request import make_request
from client.serving.answers import Answer, Kind
from client.serving.engine import Answers, Engine, Ready
from client.serving.errors import ApiError, broken
from client.serving.guard import Guard
from client.serving.reading import body_limit, body_of, check_model, encode_chat, encode_texts
from client.serving.requests import ChatRequest, CompletionRequest, Wanted, parse_request
from client.serving.writing import Stream, whole
from contract.decoder import Sampling
from contract.errors import PromptError, PromptTooLongError

CHAT_PATH = "/v1/chat/completions"
ENCODING_THREADS = 2
"""The tokens of a text take hundreds of times its memory while they are being found. As few
read bodies."""
MAX_MADE_SEED = 2**31
Handler = Callable[[Request], Awaitable[Response]]
Asked = TypeVar("Asked", bound=Wanted)


def make_app(engine: Engine, key: Token | None = None) -> Starlette:
    """The application; the engine is run by whoever serves it. ``key``: whom to let in."""
    started_unix_s = int(time.time())
    encoding = asyncio.Semaphore(ENCODING_THREADS)

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started_unix_s, "owned_by": "shardline"}

    async def models(_request: Request) -> Response:
        name = engine.ready().plan.name
        return JSONResponse({"object": "list", "data": [model(name)]})

    async def one_model(request: Request) -> Response:
        ready = engine.ready()
        check_model(ready, request.path_params["name"])
        return JSONResponse(model(ready.plan.name))

    async def chat(request: Request) -> Response:
        ready, wanted = await read(request, ChatRequest)
        # A template is a program, and a long prompt takes a while: others go on meanwhile.
        async with encoding:
            prompt = await asyncio.to_thread(encode_chat, ready, wanted)
        return await answer(request, "chat", ready, wanted, [prompt])

    async def completions(request: Request) -> Response:
        ready, wanted = await read(request, CompletionRequest)
        async with encoding:
            prompts = await asyncio.to_thread(encode_texts, ready, wanted)
        return await answer(request, "text", ready, wanted, prompts)

    async def read(request: Request, kind: type[Asked]) -> tuple[Ready, Asked]:
        """A request's body; its size is judged by the model that runs."""
        limit = body_limit(engine.ready().plan)
        body = await body_of(request, limit)
        # Megabytes of small parts take seconds: streams go on meanwhile.
        async with encoding:
            wanted = await asyncio.to_thread(parse_request, kind, body)
        ready = engine.ready()
        check_model(ready, wanted.model)
        return ready, wanted

    async def health(_request: Request) -> Response:
        return JSONResponse({"ok": True, "model": engine.ready().plan.name})

    return Starlette(
        routes=[
            Route("/v1/models", told(models)),
            Route("/v1/models/{name:path}", told(one_model)),
            Route(CHAT_PATH, told(chat), methods=["POST"]),
            Route("/v1/completions", told(completions), methods=["POST"]),
            Route("/health", told(health)),
        ],
        middleware=[Middleware(Guard, key=key)],
        exception_handlers={HTTPException: _on_http_exception, Exception: _on_exception},
    )


def _on_http_exception(_request: Request, error: Exception) -> Response:
    """Another path or method than there is."""
    assert isinstance(error, HTTPException)
    refusal = ApiError(f"{error.detail}: see docs/generate.md", status=error.status_code)
    answer = refusal.response()
    answer.headers.update(error.headers or {})  # RFC 9110, 15.5.6: a 405 names what is allowed
    return answer


def _on_exception(_request: Request, _error: Exception) -> Response:
    """What nobody has thought of. The web server logs it."""
    return broken().response()


def told(handler: Handler) -> Handler:
    """The same handler; what it raises of a request is an answer."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return error.response()
        except PromptError as error:
            too_long = isinstance(error, PromptTooLongError)
            code = "context_length_exceeded" if too_long else "invalid_value"
            param = "messages" if request.url.path == CHAT_PATH else "prompt"
            return ApiError(str(error), code=code, param=param).response()
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    return answered


async def answer(
    request: Request, kind: Kind, ready: Ready, wanted: Wanted, prompts: Sequence[Sequence[int]]
) -> Response:
    """Generate, and answer when all is there, or piece by piece.

    Raises:
        PromptError: a prompt that the plan has no room for, or cannot read.
        ApiError: too many texts are in hand, or one has failed.
    """
    plan = ready.plan
    seed = secrets.randbelow(MAX_MADE_SEED) if wanted.seed is None else wanted.seed % 2**52
    requests = [
        make_request(
            prompt,
            Sampling(
                wanted.temperature,
                wanted.top_k,
                wanted.top_p,
                wanted.repetition_penalty,
                seed + index,
            ),
            wanted.tokens,
            plan,
            wanted.stops,
        )
        for prompt in prompts
        for index in range(wanted.n)
    ]
    answers = Answers(ready, requests)
    has_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    written = Answer(
        kind, f"{prefix}-{secrets.token_hex(12)}", int(time.time()), plan.name, has_usage
    )
    prompt_tokens = sum(map(len, prompts))
    answers.submit()
    if wanted.stream:
        return Stream(answers, written, prompt_tokens)
    return await whole(request, answers, written, prompt_tokens)
