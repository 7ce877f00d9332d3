"""What a planner asks a device, and what the device answers; both on the command topic of the
receiver. An answer carries the request's id, so that an asker knows its own."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from contract.errors import WireFormatError
from contract.frozen import FrozenModel, explain
from contract.plan import ShardFile

MAX_COMMAND_BYTES = 64 * 1024
RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Fetch(FrozenModel):
    """Get these files from whoever sent this, by blob messages, and keep them in the cache."""

    kind: Literal["fetch"] = "fetch"
    format_version: Literal[1] = 1
    request_id: RequestId
    plan_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    stage_index: int = Field(ge=0)
    files: tuple[ShardFile, ...] = Field(min_length=1, max_length=16)


class FetchProgress(FrozenModel):
    """How far a device has got, about twice a second and at the end. ``error`` ends it, too."""

    kind: Literal["fetch_progress"] = "fetch_progress"
    format_version: Literal[1] = 1
    request_id: RequestId
    done_bytes: int = Field(ge=0)
    total_bytes: int = Field(ge=0)
    finished: bool = False
    error: str | None = Field(default=None, max_length=2000)


class Examine(FrozenModel):
    """Say what there is to know of the machine: `shardline deploy check`."""

    kind: Literal["examine"] = "examine"
    format_version: Literal[1] = 1
    request_id: RequestId


class Examination(FrozenModel):
    """What a device found out about its machine; None where it cannot tell.

    Bytes and seconds as named. ``throttled`` is the Raspberry Pi firmware's word: bit 0
    under-voltage now, 1 frequency capped, 2 throttled, 3 soft temperature limit; bits 16 to 19 the
    same since boot. ``memory_limit_bytes`` is the container's, None when there is none.
    """

    kind: Literal["examination"] = "examination"
    format_version: Literal[1] = 1
    request_id: RequestId
    unix_time_s: float
    shardline_version: str
    machine: str
    processor: str | None
    board: str | None
    kernel: str
    kernel_command_line: str = Field(max_length=8192)
    cores: int
    engine: str
    engine_version: str
    memory_total_bytes: int
    memory_available_bytes: int
    memory_limit_bytes: int | None
    memory_used_bytes: int | None
    memory_controller: bool
    cache_dir: str
    cache_total_bytes: int | None
    cache_free_bytes: int | None
    cache_writable: bool
    temperature_celsius: float | None
    throttled: int | None = Field(ge=0)


Command = Fetch | FetchProgress | Examine | Examination
_ANY: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])


def parse_command(payload: bytes) -> Command:
    """Read a message of a command topic.

    Raises:
        WireFormatError: too large, not JSON, or no command of format 1.
    """
    if len(payload) > MAX_COMMAND_BYTES:
        raise WireFormatError(f"command of {len(payload):,} bytes, at most {MAX_COMMAND_BYTES:,}")
    try:
        return _ANY.validate_json(payload)
    except ValidationError as error:
        raise WireFormatError(f"not a command: {explain(error)}") from error
