"""What a device says of itself: the retained status message, and events."""

from enum import StrEnum
from typing import Literal

from pydantic import Field, ValidationError

from contract.errors import WireFormatError
from contract.frozen import Count, FrozenModel, explain
from contract.printable import PlainText

MAX_STATUS_BYTES = 64 * 1024


class DeviceState(StrEnum):
    """``online`` is the birth message, ``stopped`` a clean end, ``offline`` the broker's will."""

    ONLINE = "online"
    STOPPED = "stopped"
    OFFLINE = "offline"


class ShardState(StrEnum):
    """Where the device is with its shard of the current plan."""

    IDLE = "idle"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Capabilities(FrozenModel):
    """What a device has to offer."""

    machine: PlainText
    cores: Count
    memory_bytes: Count
    engine: PlainText
    engine_version: PlainText
    shardline_version: PlainText


class DeviceStatus(FrozenModel):
    """Retained on the device's status topic.

    ``boot`` is a random number for each start of the agent, in the will and in the birth alike:
    a late will of an earlier start cannot unmake a newer birth.
    ``error``: why the shard could not be loaded, or why the agent has ended.
    """

    format_version: Literal[1] = 1
    device: PlainText
    state: DeviceState = Field(strict=False)
    boot: int
    shard: ShardState = Field(default=ShardState.IDLE, strict=False)
    plan_id: PlainText | None = None
    stage_index: int | None = None
    error: PlainText | None = None
    capabilities: Capabilities | None = None


class EventKind(StrEnum):
    """What an event is about."""

    MESSAGE_REJECTED = "message_rejected"
    SHARD_FAILED = "shard_failed"
    SHARD_READY = "shard_ready"
    BATCH_RETRIED = "batch_retried"
    BATCH_DEAD = "batch_dead"
    DEVICE_LOST = "device_lost"
    PLAN_CHANGED = "plan_changed"
    MESSAGES_DROPPED = "messages_dropped"
    DEVICE_BACK = "device_back"
    PLAN_IMPOSSIBLE = "plan_impossible"


class Event(FrozenModel):
    """Something a person should know, published as JSON on the sender's event topic."""

    format_version: Literal[1] = 1
    kind: EventKind = Field(strict=False)
    sender: PlainText
    time_unix_s: float
    detail: PlainText
    count: Count = 1


def parse_status(payload: bytes, topic_device: str | None = None) -> DeviceStatus:
    """Read a status message; ``topic_device`` is the device that its topic names.

    Raises:
        WireFormatError: it is not one, or speaks for another device: the topic is what the
            broker's access control guards, what the payload claims is not.
    """
    if len(payload) > MAX_STATUS_BYTES:
        raise WireFormatError(f"status of {len(payload):,} bytes, at most {MAX_STATUS_BYTES:,}")
    try:
        status = DeviceStatus.model_validate_json(payload)
    except ValidationError as error:
        raise WireFormatError(f"not a device status: {explain(error)}") from error
    if topic_device is not None and status.device != topic_device:
        raise WireFormatError(f"status of {status.device!r:.80} on the topic of {topic_device!r}")
    return status
