"""How the command talks to a person: colours on a terminal only, progress on stderr."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

# A pipe has no width: names and topics in a table must not be folded to an assumed 80 columns.
out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False, emoji=False)

Step = Callable[[str, float], None]


def set_up_logging(verbose: bool) -> None:
    """Log lines on stderr: warnings of ours, everything from information up when verbose."""
    level = logging.INFO if verbose else logging.WARNING
    if err.is_terminal:
        handler: logging.Handler = RichHandler(console=err, show_path=False)
        logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    else:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


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


def size(count: float) -> str:
    """A size for people: 512 B, 49.0 KB, 97.5 MB (powers of 1000)."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
