"""How a rival's process hears and answers: one JSON object a line, standard output kept for it."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

Command = Callable[[dict[str, Any]], dict[str, Any]]


def own_output() -> TextIO:
    """Standard output for answers alone: whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def serve(commands: dict[str, Command], answers: TextIO, hello: dict[str, Any]) -> None:
    """Say ``hello``, then answer commands, ``{"do": NAME, …}``, until the input ends."""
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        print(json.dumps(commands[told.pop("do")](told)), file=answers, flush=True)
