"""The base of every document that crosses a process: frozen, strict, unknown keys refused."""

from pydantic import BaseModel, ConfigDict, ValidationError


class FrozenModel(BaseModel):
    """Immutable pydantic model; wrong types and unknown keys raise ``pydantic.ValidationError``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def explain(error: ValidationError) -> str:
    """The first thing wrong with a document, as ``place.in.it: what``."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return f"{place}: {what}" if place else what
