"""What a journal is of: who feeds, from which source, which model."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from contract.errors import JournalError
from contract.plan import ModelInfo, Plan
from contract.tensor_spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Subject:
    """What a journal is of; None where it does not say yet.

    ``source`` is how the user named the source, ``source_identity`` what it holds (see
    :class:`client.sources.Source`); both are empty for a program that hands its batches over
    itself. ``is_exhausted``: every batch of the source is in the journal.
    """

    client: str | None = None
    source: str | None = None
    source_identity: str | None = None
    model: ModelInfo | None = None
    tensor: TensorSpec | None = None
    is_exhausted: bool = False


def read_subject(database: sqlite3.Connection, path: Path) -> Subject:
    """What the table `about` says.

    Raises:
        JournalError: something that this version does not understand.
    """
    about = dict(database.execute("SELECT key, value FROM about").fetchall())
    model, tensor = about.get("model"), about.get("tensor")
    try:
        return Subject(
            client=about.get("client"),
            source=about.get("source"),
            source_identity=about.get("source_identity"),
            model=None if model is None else ModelInfo.model_validate_json(model),
            tensor=None if tensor is None else TensorSpec.model_validate_json(tensor),
            is_exhausted="exhausted" in about,
        )
    except ValidationError as error:
        raise JournalError(
            f"journal {path}: does not say which model it is of; move it away and begin a new one"
        ) from error


def write_about(database: sqlite3.Connection, **values: str) -> None:
    """Note some of it, lasting at once."""
    database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", values.items())


def check_model(subject: Subject, plan: Plan, path: Path) -> None:
    """Check that a plan's answers may stand beside those that the journal has.

    Raises:
        JournalError: another model, or other weights. Another plan of the same model may go on.
    """
    model = subject.model
    if model is None:
        return
    if (model.digest, subject.tensor) != (plan.model.digest, plan.stages[0].inputs[0]):
        raise JournalError(
            f"journal {path}: is of model {model.name} with weights {model.weights} "
            f"({model.digest[:12]}…), the published plan {plan.name} of {plan.model.name} with "
            f"weights {plan.model.weights} ({plan.model.digest[:12]}…); publish a plan of the "
            "journal's model, or name another file"
        )


def check_source(subject: Subject, text: str, identity: str, path: Path) -> None:
    """Check that a source is the one that the journal has read from.

    Raises:
        JournalError: it holds something else.
    """
    if subject.source_identity in (None, identity):
        return
    raise JournalError(
        f"journal {path}: is of {_described(subject.source, subject.source_identity)}, not of "
        f"{_described(text, identity)}; name the same source with the same content, or another "
        "journal file"
    )


def _described(text: str | None, identity: str | None) -> str:
    return f"source {text} ({identity})" if identity else "batches that a program hands over"
