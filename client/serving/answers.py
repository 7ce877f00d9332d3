"""What goes out: OpenAI's documents of whole answers, and of the pieces of a stream. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

DONE = "data: [DONE]\n\n"
Kind = Literal["chat", "text"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompts, and of the answers."""

    prompt_tokens: int
    completion_tokens: int

    def document(self) -> dict[str, int]:
        """As OpenAI's."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, whole or in pieces. ``has_usage``: whether the stream ends with its usage."""

    kind: Kind
    answer_id: str
    created_unix_s: int
    model: str
    has_usage: bool = False

    def whole(self, texts: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """The document of all of it; ``texts`` with why each ended."""
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        choices = [self._choice(index, text, why) for index, (text, why) in enumerate(texts)]
        return self._document(name, choices) | {"usage": usage.document()}

    def _choice(self, index: int, text: str, why: str) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"index": index, **said, "logprobs": None, "finish_reason": why}

    def opening(self, index: int) -> str:
        """The first event of an answer in a stream: who speaks. None of a text's."""
        if self.kind == "text":
            return ""
        return self._event(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, text: str) -> str:
        """An event with more of a text."""
        return self._event(index, {"content": text}, None)

    def ending(self, index: int, why: str) -> str:
        """An event that says why a text ends."""
        return self._event(index, {}, why)

    def usage(self, usage: Usage) -> str:
        """The event with the usage."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return event(self._document(name, []) | {"usage": usage.document()})

    def _event(self, index: int, delta: dict[str, str], why: str | None) -> str:
        said: dict[str, Any] = {"text": delta.get("content", "")}
        name = "text_completion"
        if self.kind == "chat":
            said, name = {"delta": delta}, "chat.completion.chunk"
        choice = {"index": index, **said, "logprobs": None, "finish_reason": why}
        document = self._document(name, [choice])
        return event(document | {"usage": None} if self.has_usage else document)

    def _document(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": name,
            "created": self.created_unix_s,
            "model": self.model,
            "choices": choices,
        }


def event(document: dict[str, Any]) -> str:
    """A server-sent event, of ASCII alone: some clients take U+2028, U+2029 and U+0085, which a
    text may hold, for the ends of lines."""
    return f"data: {json.dumps(document)}\n\n"
