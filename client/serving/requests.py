"""What comes in: the fields of OpenAI's requests that mean something here; others are refused.

A field whose value asks for nothing (`n: 1`, `logprobs: false`) is let through, since clients send
such values of their own accord. Pure.
"""

import json
from collections.abc import Mapping
from itertools import takewhile
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from client.serving.errors import ApiError, not_supported
from contract.decoder import MAX_CONTEXT_TOKENS, MAX_SEED

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1_000
"""Every token that comes is compared with them, on the pipeline's thread."""
MAX_MESSAGES = 10_000
MAX_PARTS = 1_000
MAX_FIELDS = 64
MAX_SHOWN = 100
MAX_WHOLE = MAX_SEED
"""No number of tokens is larger, and no larger one can be sent."""
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}
"""Fields of OpenAI's that this interface has not, and what of them asks for nothing."""
ABOUT_THE_CALLER = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Fields that change no answer anywhere."""


def _items(at_most: int) -> Any:
    """A list ends the check with its first fault: pydantic keeps an error for every item."""
    return Field(max_length=at_most, fail_fast=True)


def _said(text: str) -> str:
    """JSON can say half of a surrogate pair, which no tokenizer and no answer can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "no_text", "half of a surrogate pair at character {at}", {"at": error.start}
        ) from error
    return text


Text = Annotated[str, AfterValidator(_said)]
Tokens = Annotated[list[int], _items(MAX_CONTEXT_TOKENS)]
StopText = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS), AfterValidator(_said)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _of_few_fields(cls, given: Any) -> Any:
        """An error is kept for every unknown one, too."""
        if isinstance(given, dict) and len(given) > MAX_FIELDS:
            raise PydanticCustomError("too_long", f"more than {MAX_FIELDS} fields")
        return given


class StreamOptions(_Strict):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Wanted(_Strict):
    """What both kinds of request have in common."""

    model: Text
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_WHOLE)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=MAX_WHOLE)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stop: StopText | Annotated[list[StopText], _items(MAX_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer.

        Raises:
            ApiError: an empty one.
        """
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not all(found):
            raise ApiError("`stop`: expected texts, none empty", param="stop", code="invalid_value")
        return tuple(found)

    @property
    def tokens(self) -> int | None:
        """How many tokens an answer may have; None: as many as there is room for."""
        return self.max_tokens


class TextPart(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """One turn of a dialogue. ``name`` changes no answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], _items(MAX_PARTS)]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_empty(cls, given: Any) -> Any:
        """Answers of OpenAI's clients, sent back as turns, have fields that hold nothing."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value not in (None, [], {})}

    def as_template(self) -> dict[str, str]:
        """As chat templates read it: `developer` is what newer clients call `system`."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Wanted):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1), _items(MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_WHOLE)

    @property
    def tokens(self) -> int | None:
        """See :class:`Wanted`. `max_tokens` is the older name."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Wanted):
    """`POST /v1/completions`. ``prompt``: texts, or tokens of this model."""

    prompt: (
        Text
        | Annotated[list[Text], _items(MAX_CHOICES)]
        | Tokens
        | Annotated[list[Tokens], _items(MAX_CHOICES)]
    )
    max_tokens: int | None = Field(default=16, ge=1, le=MAX_WHOLE)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [[part for part in self.prompt if isinstance(part, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]


Kind = TypeVar("Kind", bound=Wanted)


def parse_request(kind: type[Kind], body: bytes) -> Kind:
    """Read a request's body.

    Raises:
        ApiError: no JSON, a field that is missing or wrong, or one that is not supported.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is no JSON: {error!s:.200}") from error
    if not isinstance(document, dict):
        raise ApiError("the body is no JSON object")
    given = {name: value for name, value in document.items() if value is not None}
    for name in ABOUT_THE_CALLER:
        given.pop(name, None)
    for name, neutral in NEUTRAL.items():
        if name in given and not _is_among(given.pop(name), neutral):
            raise not_supported(name, "what it asks for")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _explained(error) from error


def _is_among(value: object, neutral: tuple[object, ...]) -> bool:
    """Whether it is one of them; false is not 0 here: `logprobs: 0` asks for those of the tokens
    that are chosen."""
    is_flag = isinstance(value, bool)
    return any(value == other for other in neutral if isinstance(other, bool) == is_flag)


def _explained(error: ValidationError) -> ApiError:
    found: list[Any] = error.errors(include_url=False, include_input=False)
    # Of a union's branches the one that says most: the kind is right, but not what is there.
    telling = (e for e in found if e["type"].endswith(("too_long", "no_text")))
    first: Mapping[str, Any] = next(telling, found[0])
    # The branches stand in the path: a caller knows fields and positions.
    path = takewhile(lambda part: "[" not in str(part), first["loc"])
    param = ".".join(map(str, path))[:MAX_SHOWN] or None
    if first["type"] == "extra_forbidden":
        return not_supported(param or "", "this field")
    return ApiError(f"`{param}`: {first['msg']}", param=param, code="invalid_value")
