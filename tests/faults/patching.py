"""Named changes to the product's code, made in a process of the harness and undone at its end."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

from tests.faults.triggers import Triggers


@dataclass(frozen=True)
class Context:
    """Whose process this is, where its trigger files are, and when the changes are undone."""

    name: str
    triggers: Triggers
    stack: ExitStack

    def replace(self, owner: Any, attribute: str, value: Any) -> None:
        """Put ``value`` in the place of an attribute that must exist."""
        self.stack.enter_context(mock.patch.object(owner, attribute, value))

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Put ``around(original, *arguments)`` in the place of a function or a method."""
        original = getattr(owner, name)

        def wrapper(*arguments: Any, **named: Any) -> Any:
            return around(original, *arguments, **named)

        self.replace(owner, name, wrapper)


Patch = Callable[[Context, str], None]
PATCHES: dict[str, Patch] = {}


def patch(make: Patch) -> Patch:
    """Register a patch under its function's name."""
    PATCHES[make.__name__] = make
    return make


def apply(context: Context, texts: Iterable[str]) -> None:
    """Make the changes named by texts as ``slow:5`` (name, colon, argument)."""
    for text in texts:
        name, _, argument = text.partition(":")
        PATCHES[name](context, argument)
