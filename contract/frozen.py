"""The base of every document that crosses a process: frozen, strict, unknown keys refused."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.printable import printable

MAX_EXPLANATION = 500
Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of bytes, of batches, of anything: JSON's integers have no end, files and floats do."""


class FrozenModel(BaseModel):
    """Immutable pydantic model; wrong types and unknown keys raise ``pydantic.ValidationError``.

    So does a number that is infinite or none: comparisons with it would say anything.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def explain(error: ValidationError) -> str:
    """The first thing wrong with a document, as ``place.in.it: what``, on one printable line."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return printable(f"{place}: {what}" if place else what)[:MAX_EXPLANATION]
