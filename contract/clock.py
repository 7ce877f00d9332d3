"""Asks a device for the time: one small request and its answer, at QoS 0."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from contract.errors import WireFormatError
from contract.frozen import Count, FrozenModel, explain

MAX_CLOCK_BYTES = 512


class ClockRequest(FrozenModel):
    """``number`` comes back in the answer: a late answer must not be taken for a later one's."""

    kind: Literal["clock_request"] = "clock_request"
    format_version: Literal[1] = 1
    number: Count


class ClockAnswer(FrozenModel):
    """When the request was read and when this was written, in microseconds of the device's clock.

    ``number`` as in the request. Both are taken on the network thread, so that a batch in work
    does not count.
    """

    kind: Literal["clock_answer"] = "clock_answer"
    format_version: Literal[1] = 1
    number: Count
    received_us: Count
    sent_us: Count


_CLOCK: TypeAdapter[ClockRequest | ClockAnswer] = TypeAdapter(
    Annotated[ClockRequest | ClockAnswer, Field(discriminator="kind")]
)


def parse_clock(payload: bytes) -> ClockRequest | ClockAnswer:
    """Read what came on a clock topic.

    Raises:
        WireFormatError: it is neither a question for the time nor an answer, or too large.
    """
    if len(payload) > MAX_CLOCK_BYTES:
        raise WireFormatError(f"{len(payload):,} bytes on a clock topic, at most {MAX_CLOCK_BYTES}")
    try:
        return _CLOCK.validate_json(payload)
    except ValidationError as error:
        raise WireFormatError(f"not about the time: {explain(error)}") from error
