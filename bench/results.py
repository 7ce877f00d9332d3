"""Results of a benchmark as one JSON document: rows, and all that they depend on.

{"format_version": 1, "benchmark": "hop", "date": "2026-11-22", "command": "python -m …",
 "machine": {…}, "versions": {…}, "stillness": {…}, "rows": [{…}, …], "notes": ["…"]}
"""

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.machine import Stillness, machine, versions
from bench.tables import Column, Row, plain

RESULTS = Path("bench/results")
PLANS = Path("shards/built/bench")


@dataclass(frozen=True, slots=True)
class Document:
    """One run of one benchmark. ``notes`` says what could not be measured, and why."""

    benchmark: str
    date: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    stillness: dict[str, Any]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    format_version: Literal[1] = 1


class Recorder:
    """Takes the rows of a run as they come, prints them, and writes the document at the end."""

    def __init__(self, benchmark: str, columns: Sequence[Column], path: Path | None) -> None:
        self._benchmark, self._columns, self._path = benchmark, columns, path
        self._stillness = Stillness.now()
        self._rows: list[dict[str, Any]] = []
        self._notes: list[str] = []

    def add(self, row: Row) -> None:
        """Another row. It is written at once: a run that is stopped keeps what it has."""
        self._rows.append(dict(row))
        print(" · ".join(column.show(row) for column in self._columns), flush=True)
        self._write()

    def note(self, sentence: str) -> None:
        """What the reader of the rows must know."""
        if sentence not in self._notes:
            self._notes.append(sentence)
            print(sentence, flush=True)

    def finish(self) -> None:
        """Print the table, write the document."""
        print()
        print(plain(self._columns, self._rows))
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        document = Document(
            benchmark=self._benchmark,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            command=shlex.join(
                ["python", "-m", f"bench.{self._benchmark}", *public_arguments(sys.argv[1:])]
            ),
            machine=machine(),
            versions=versions(),
            stillness=Stillness.now().since(self._stillness),
            rows=self._rows,
            notes=self._notes,
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(asdict(document), indent=1, ensure_ascii=False) + "\n")


PRIVATE = ("--json", "--plans", "--picture", "--before")


def public_arguments(arguments: Sequence[str]) -> list[str]:
    """A command's arguments but for where things lie, which is nobody else's business. Pure."""
    kept = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, _value = argument.partition("=")
        if name not in PRIVATE:
            kept.append(argument)
        elif not equals:
            next(remaining, None)
    return kept


def load(path: Path) -> Document:
    """Read a document back.

    Raises:
        ValueError: it is not one, or of another version.
    """
    try:
        document = Document(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the results of a benchmark: {error}") from error
    if document.format_version != 1:
        raise ValueError(f"{path}: format {document.format_version}, expected 1; run it again")
    return document


def parser(
    description: str | None, rounds: int | None = None, seconds: float | None = None
) -> argparse.ArgumentParser:
    """The options that all benchmarks share; ``seconds`` is of one side in one round."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
    if seconds is not None:
        made.add_argument("--seconds", type=float, default=seconds, help="of a side in a round")
    made.add_argument("--json", type=Path, help="write the results here too")
    return made


def names(value: str) -> list[str]:
    """Comma-separated words, for an option."""
    return [part for part in value.split(",") if part]


def numbers(value: str) -> list[int]:
    """Comma-separated whole numbers, for an option."""
    return [int(part) for part in names(value)]
