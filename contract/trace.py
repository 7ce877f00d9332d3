"""Where the time of a batch went: what a client publishes of the batches that it got back.

A stage writes four times of its own clock into each message (:class:`contract.activation.Hop`); the
client adds when it sent the batch and when the result was there, by its clock. Clocks differ, so
each message also says by how much, as far as the client could estimate it over the broker.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from contract.activation import Hop
from contract.frozen import Count, FrozenModel
from contract.placement import MAX_STAGES
from contract.printable import PlainText

MAX_TRACED = 64
"""Batches in one message: beyond it they are only counted, since metrics must stay small."""

Microseconds = Annotated[int, Field(gt=-(2**63), lt=2**63)]
"""A time, or a difference of two: JSON's integers have no end, files and floats do."""


class ClockOffset(FrozenModel):
    """How far a device's clock is ahead of the client's, in microseconds.

    Estimated as in RFC 5905, section 8: the exchange with the shortest round trip of several, whose
    two ways are taken as equally long. It is wrong by ``round_trip_us`` / 2 at most.
    """

    device: PlainText
    offset_us: Microseconds
    round_trip_us: Count


class BatchTrace(FrozenModel):
    """One batch that came back. ``hops[k]`` is what stage ``k`` did on device ``route[k]``.

    ``queued_us``: when the client had the batch ready; ``sent_us``: when it published the attempt
    that was answered; ``received_us``: when it counted the result. These three are of the client's
    Unix clock, the hops of the devices', all in microseconds. ``attempt`` is 0 for the first time
    that the batch was sent. ``bytes_in`` and ``bytes_out`` are of the input and of the result, as
    messages.
    """

    epoch: PlainText
    seq: Count
    attempt: Count
    images: Count
    queued_us: Microseconds
    sent_us: Microseconds
    received_us: Microseconds
    route: tuple[PlainText, ...] = Field(max_length=MAX_STAGES)
    hops: tuple[Hop, ...] = Field(max_length=MAX_STAGES)
    bytes_in: Count = 0
    bytes_out: Count = 0

    @field_validator("hops")
    @classmethod
    def _check_times(cls, hops: tuple[Hop, ...]) -> tuple[Hop, ...]:
        if not all(0 <= time_us < 2**63 for hop in hops for time_us in hop):
            raise ValueError("a time of a hop: expected 0 to 2^63 - 1 microseconds")
        return hops


class TraceMetrics(FrozenModel):
    """One JSON object a second from each client: the batches of that second, newest last.

    ``omitted`` counts those that did not fit.
    """

    format_version: Literal[1] = 1
    client: PlainText
    time_unix_s: float
    plan_id: PlainText
    clocks: tuple[ClockOffset, ...] = ()
    batches: tuple[BatchTrace, ...] = Field(max_length=MAX_TRACED)
    omitted: Count = 0
