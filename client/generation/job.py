"""A request on its way through a pipeline, and what becomes of it, piece by piece."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from client.batch import Batch
from client.generation.request import Request
from client.generation.stop_strings import StopStrings
from client.tokenizer import TextStream


class FinishReason(StrEnum):
    """Why a text ends: an end token or a stop string, its length, or a fault."""

    STOP = "stop"
    LENGTH = "length"
    FAILED = "failed"


class Piece(NamedTuple):
    """What one token added to a text, or the text's end. ``detail``: of a fault."""

    text: str
    finish: FinishReason | None = None
    detail: str = ""


Tell = Callable[[Piece], None]


@dataclass(slots=True)
class Job:
    """One request on its way. ``tell`` is called on the pipeline's thread."""

    request: Request
    tell: Tell
    stream: TextStream
    stops: StopStrings
    name: str
    tokens: int = 0
    first_token_at: float | None = None
    batch: Batch | None = None
    row: int = 0
    is_over: bool = False
