"""The base of every document that crosses a process: frozen, strict, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """Immutable pydantic model; wrong types and unknown keys raise ``pydantic.ValidationError``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
