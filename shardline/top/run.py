"""How `shardline top` is shown: live where a terminal can be drawn on, else as one snapshot."""

import importlib.util
import sys
from collections.abc import Mapping
from typing import TextIO

from client.watch.observer import Observer
from contract.errors import EnvironmentMissingError
from shardline.console import err, out, print_json
from shardline.top.snapshot import (
    PIPE_WIDTH,
    first_second,
    is_utf,
    snapshot_document,
    snapshot_text,
    write_text,
)

CANNOT_DRAW = ("", "dumb", "unknown")
"""Values of TERM that know no way to move the cursor."""


def why_not_live(file: TextIO, environment: Mapping[str, str]) -> str | None:
    """Why ``file`` cannot show a live view; None where it can."""
    if not file.isatty():
        return "stdout is not a terminal"
    if environment.get("TERM", "") in CANNOT_DRAW:
        return f"TERM is {environment.get('TERM', '')!r}"
    if not is_utf(file):
        return f"the terminal's encoding is {file.encoding}"
    return None


def require_textual() -> None:
    """Look for what the live view is drawn with.

    Raises:
        EnvironmentMissingError: it is not installed.
    """
    if importlib.util.find_spec("textual") is None:
        raise EnvironmentMissingError(
            "textual is not installed: the live view needs it, --once and --json do not; "
            "run `make setup`, or pip install 'shardline[watch]'"
        )


def show_live(observer: Observer, broker: str) -> None:
    """Until the reader ends it.

    Raises:
        BrokerError: the broker has refused us something that trying again does not mend.
    """
    from shardline.top.app import TopApp

    app = TopApp(observer.view, broker)
    app.run(mouse=False)
    if app.failure is not None:
        raise app.failure


def show_once(observer: Observer, broker: str, *, as_json: bool, why: str | None = None) -> None:
    """One snapshot, after the first second; ``why``: what kept the live view away, if it did.

    Raises:
        BrokerError: the broker has refused us something.
    """
    view = first_second(observer)
    if as_json:
        print_json(snapshot_document(view))
        return
    if why is not None:
        err.print(f"{why}: one snapshot, as with --once", markup=False, soft_wrap=True)
    write_text(snapshot_text(view, broker, out.width if sys.stdout.isatty() else PIPE_WIDTH))
