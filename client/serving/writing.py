"""What is answered: all texts when the last has ended, or their pieces as they come."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from client.generation.job import FinishReason
from client.serving.answers import DONE, Answer, Usage, event
from client.serving.engine import Answers
from client.serving.errors import failed


async def whole(
    request: Request, answers: Answers, written: Answer, prompt_tokens: int
) -> Response:
    """All texts, when the last has ended."""
    collecting = asyncio.ensure_future(_collect(answers))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            raise ClientDisconnect
        return JSONResponse(written.whole(collecting.result(), _usage(answers, prompt_tokens)))
    finally:
        answers.cancel()
        for task in (collecting, leaving):
            task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collect(answers: Answers) -> list[tuple[str, str]]:
    texts, reasons = [""] * len(answers), [""] * len(answers)
    while not all(reasons):
        index, piece = await answers.next()
        texts[index] += piece.text
        if piece.finish is FinishReason.FAILED:
            raise failed(piece.detail)
        reasons[index] = str(piece.finish or "")
    return list(zip(texts, reasons, strict=True))


class Stream(StreamingResponse):
    """The texts' pieces as they come. Nobody reads on when it ends, however it does, even if that
    is before it has begun: a generator that was never asked has no `finally`."""

    def __init__(self, answers: Answers, written: Answer, prompt_tokens: int) -> None:
        super().__init__(
            stream(answers, written, prompt_tokens),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()  # those that have ended stay as they are


async def stream(answers: Answers, written: Answer, prompt_tokens: int) -> AsyncIterator[str]:
    """The texts' pieces as server-sent events."""
    left = len(answers)
    for index in range(left):
        if opening := written.opening(index):
            yield opening
    while left:
        index, piece = await answers.next()
        if piece.finish is FinishReason.FAILED:
            yield event(failed(piece.detail).document())
            return
        if piece.text:
            yield written.piece(index, piece.text)
        if piece.finish is not None:
            left -= 1
            yield written.ending(index, str(piece.finish))
    if written.has_usage:
        yield written.usage(_usage(answers, prompt_tokens))
    yield DONE


def _usage(answers: Answers, prompt_tokens: int) -> Usage:
    return Usage(prompt_tokens, sum(job.tokens for job in answers.jobs))
