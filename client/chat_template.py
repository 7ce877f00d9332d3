"""A dialogue as the model was trained to read it, by the template that came with the model.

A template is a program that whoever made the model wrote: it runs in jinja2's sandbox, and is given
what transformers gives to it (utils/chat_template_utils.py), so that it writes the same.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from client.tokenizer_folder import TemplateSource
from contract.errors import PromptError, SettingsError

Message = Mapping[str, Any]
"""One turn of a dialogue: ``role`` and ``content``."""


class ChatTemplate:
    """May be used from several threads."""

    def __init__(self, source: TemplateSource, special_tokens: Mapping[str, str]) -> None:
        """Compile it: what is wrong with the template itself is no fault of any message's.

        Raises:
            SettingsError: it is no template.
        """
        self._special_tokens = special_tokens
        try:
            self._template = _environment().from_string(source.text)
        except Exception as error:  # beside jinja2's own whatever Python's compiler raises
            why = f"{error!s:.200}"
            if isinstance(error, TemplateSyntaxError):
                why = f"line {error.lineno}: {error.message}"
            raise SettingsError(
                f"{source.file}: no chat template that can be used ({why}); correct it, or take it "
                "from a later version of the model; without one it goes on with texts, and does "
                "not converse"
            ) from error

    def render(self, messages: Sequence[Message]) -> str:
        """A dialogue up to where the model's turn begins.

        Raises:
            PromptError: the template refuses these messages.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (
            *(TemplateError, TypeError, ValueError, ArithmeticError),
            *(LookupError, AttributeError, RecursionError),
        ) as error:
            raise PromptError(f"the chat template refuses these messages: {error}") from error


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: marks for training what the model itself has said.

    The body is a block of its own, as it is in transformers: what is set in it ends with it.
    """

    tags = {"generation"}  # noqa: RUF012 jinja2's way to say it

    def parse(self, parser: Parser) -> Node:
        """See jinja2."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Macro) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates expect of their surroundings."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes what HTML must not hold, which no model has learned to read."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
