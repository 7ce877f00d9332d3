"""How the command talks to a person: colours on a terminal only, progress on stderr.

What devices, plans and files say is shown to the person and never obeyed by the terminal: whatever
is printed or logged here is made printable first.
"""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment

from contract.printable import printable


class PlainConsole(Console):
    """A console on which only rich itself moves the cursor and changes colours."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See rich. The text of every segment is made printable; line feeds stay."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, keep="\n"), segment.style)


class PlainFormatter(logging.Formatter):
    """Log lines without control characters: one record's message is one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        """See logging. A traceback comes after it."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """See logging. What an exception says may have come from anywhere."""
        return printable(super().formatException(ei), keep="\n")


# A pipe has no width: names and topics in a table must not be folded to an assumed 80 columns.
out = PlainConsole(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 160)
err = PlainConsole(stderr=True, highlight=False, emoji=False)

Step = Callable[[str, float], None]


def set_up_logging(verbose: bool) -> None:
    """Log lines on stderr: warnings of ours, everything from information up when verbose."""
    level = logging.INFO if verbose else logging.WARNING
    if err.is_terminal:
        handler: logging.Handler = RichHandler(console=err, show_path=False)
        handler.setFormatter(PlainFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


@contextmanager
def steps(title: str) -> Iterator[Step]:
    """A progress bar for work that names its steps: ``step("exporting", 0.4)``."""
    with progress_bar() as bar:
        task = bar.add_task(title, total=1.0, note="")

        def step(description: str, fraction: float) -> None:
            bar.update(task, description=description, completed=fraction)

        yield step
        bar.update(task, description=title, completed=1.0)


def progress_bar() -> Progress:
    """A bar that vanishes when done, and that a pipe never sees."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def print_json(document: object) -> None:
    """One JSON document on stdout, for scripts."""
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def hear_any_bytes() -> None:
    """Let bytes of stdin that are no text of its encoding come as halves of surrogate pairs, as
    those of a shell's arguments do: who reads them can refuse them by a sentence. To be called
    before anything is read."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def size(count: float) -> str:
    """A size for people: 512 B, 49.0 KB, 97.5 MB (powers of 1000)."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
