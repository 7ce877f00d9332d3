"""The refusal of a batch: a stage tells the client why, instead of dropping anything silently."""

from enum import StrEnum
from typing import Literal

from pydantic import Field, ValidationError

from contract.activation import BatchId
from contract.errors import WireFormatError
from contract.frozen import Count, FrozenModel, explain
from contract.placement import MAX_STAGES
from contract.printable import Detail, PlainText

MAX_NACK_BYTES = 32 * 1024  # 2,000 characters of detail and 256 names, escaped at their longest


class NackReason(StrEnum):
    """Why a stage refused a batch; docs/wire-format.md says what the client does about each."""

    STALE = "stale"
    PLAN_MISMATCH = "plan_mismatch"
    NOT_READY = "not_ready"
    MISROUTED = "misrouted"
    INVALID = "invalid"
    NO_SUBSCRIBER = "no_subscriber"
    PUBLISH_REFUSED = "publish_refused"
    ENGINE_FAILED = "engine_failed"
    POISON = "poison"
    CACHE_LOST = "cache_lost"


POISONOUS = frozenset(
    {
        NackReason.ENGINE_FAILED,
        NackReason.INVALID,
        NackReason.POISON,
        NackReason.PUBLISH_REFUSED,
    }
)
"""Reasons that lie in the batch itself: after three of them it is declared dead."""


class Nack(FrozenModel):
    """A refusal, published on the client's nack topic as JSON.

    ``route`` is the one that the refused message named. A stage answers only a message whose sender
    is the one before it on that route, so whoever wants a batch of others refused must name a route
    that leads through itself, which is not the one that the client gave.
    """

    format_version: Literal[1] = 1
    plan_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    epoch: str = Field(pattern=r"^[0-9a-f]{16}$")
    seq: Count
    attempt: Count
    stage_index: Count
    route: tuple[PlainText, ...] = Field(max_length=MAX_STAGES)
    device: PlainText
    reason: NackReason = Field(strict=False)
    detail: Detail

    @property
    def batch_id(self) -> BatchId:
        """Which batch was refused."""
        return BatchId(int(self.epoch, 16), self.seq)


def parse_nack(payload: bytes, topic_device: str | None = None) -> Nack:
    """Read a refusal; ``topic_device`` is the sender that its topic names.

    Raises:
        WireFormatError: it is not one, or speaks for another device.
    """
    if len(payload) > MAX_NACK_BYTES:
        raise WireFormatError(f"nack of {len(payload):,} bytes, at most {MAX_NACK_BYTES:,}")
    try:
        nack = Nack.model_validate_json(payload)
    except ValidationError as error:
        raise WireFormatError(f"not a nack: {explain(error)}") from error
    if topic_device is not None and nack.device != topic_device:
        raise WireFormatError(f"nack of {nack.device!r:.80} on the topic of {topic_device!r}")
    return nack
