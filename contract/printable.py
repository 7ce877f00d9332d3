"""Text of another process, made fit for a terminal and a log: one line without control characters.

What a device says of itself is shown to people. A terminal obeys escape sequences wherever they
come from, and a line feed in a log begins what looks like a line of our own; so both are written
out (``\\x1b``, ``\\n``) where a message is read, and once more where it is shown.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

MAX_DETAIL = 2000
"""Characters of the longest sentence that a message carries."""


def printable(text: str, keep: str = "") -> str:
    """``text`` with everything that Unicode does not call printable written as an escape.

    That is control characters, line and paragraph separators, marks that turn the direction of
    reading, lone surrogates. Characters of ``keep`` stay. Twice makes no difference.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def _plain(text: str) -> str:
    return printable(text[:MAX_DETAIL])[:MAX_DETAIL]


PlainText = Annotated[str, AfterValidator(_plain)]
"""A field of a message: made printable, and cut where it is longer than a sentence."""
Detail = Annotated[str, Field(max_length=MAX_DETAIL), AfterValidator(_plain)]
"""The same, but a message with a longer one is refused."""
