"""What a planner asks a device, and what the device answers.

Requests and answers go by topics of different kinds: a device may write answers and no request, so
nobody but a planner can make a device work. An answer carries the request's id, so that an asker
knows its own.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from contract.errors import WireFormatError
from contract.frozen import Count, FrozenModel, explain
from contract.plan import ShardFile
from contract.printable import Detail, PlainText
from contract.tensor_spec import TensorSpec

MAX_COMMAND_BYTES = 256 * 1024
MAX_WEIGHTS = 2000
"""Weights that one measurement makes up; with offsets of ten digits they fit into a command."""
MAX_KERNELS = 2500
MAX_KERNEL_NAME = 200
MAX_CORES = 4096
MAX_UNIX_TIME_S = 1e12
RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Ms = Annotated[float, Field(ge=0, le=1e12)]
Rate = Annotated[float, Field(gt=0, le=1e15)]


class Fetch(FrozenModel):
    """Get these files from whoever sent this, by blob messages, and keep them in the cache."""

    kind: Literal["fetch"] = "fetch"
    format_version: Literal[1] = 1
    request_id: RequestId
    plan_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    stage_index: Count
    files: tuple[ShardFile, ...] = Field(min_length=1, max_length=16)


class FetchProgress(FrozenModel):
    """How far a device has got, about twice a second and at the end. ``error`` ends it, too."""

    kind: Literal["fetch_progress"] = "fetch_progress"
    format_version: Literal[1] = 1
    request_id: RequestId
    done_bytes: Count
    total_bytes: Count
    finished: bool = False
    error: Detail | None = None


class Examine(FrozenModel):
    """Say what there is to know of the machine: `shardline deploy check`."""

    kind: Literal["examine"] = "examine"
    format_version: Literal[1] = 1
    request_id: RequestId


class Examination(FrozenModel):
    """What a device found out about its machine; None where it cannot tell.

    Bytes and seconds as named. ``throttled`` is the Raspberry Pi firmware's word: bit 0
    under-voltage now, 1 frequency capped, 2 throttled, 3 soft temperature limit; bits 16 to 19 the
    same since boot. ``memory_limit_bytes`` is the container's, None when there is none, and so is
    ``processors_limit``: how many processors' time it may use. ``threads`` are the engine's.
    """

    kind: Literal["examination"] = "examination"
    format_version: Literal[1] = 1
    request_id: RequestId
    unix_time_s: float = Field(ge=-MAX_UNIX_TIME_S, le=MAX_UNIX_TIME_S)
    shardline_version: PlainText
    machine: PlainText
    processor: PlainText | None
    board: PlainText | None
    kernel: PlainText
    kernel_command_line: str = Field(max_length=8192)
    cores: int = Field(ge=1, le=MAX_CORES)
    engine: PlainText
    engine_version: PlainText
    memory_total_bytes: Count
    memory_available_bytes: Count
    memory_limit_bytes: Count | None
    memory_used_bytes: Count | None
    memory_controller: bool
    cache_dir: PlainText
    cache_total_bytes: Count | None
    cache_free_bytes: Count | None
    cache_writable: bool
    temperature_celsius: float | None
    throttled: int | None = Field(ge=0, lt=2**32)
    threads: int | None = Field(default=None, ge=1, le=MAX_CORES)
    processors_limit: float | None = Field(default=None, gt=0)


class GeneratedWeight(FrozenModel):
    """A weight that the device makes up: normally distributed numbers times ``scale``.

    ``offset`` and ``length`` are bytes in the weights file. Speed does not depend on the values, as
    long as nothing overflows or dies out, so weights need not travel to be measured.
    """

    offset: Count
    length: int = Field(gt=0, lt=2**63)
    dtype: Literal["float16", "float32", "float64"]
    scale: float = Field(gt=0, le=1000)


class Measure(FrozenModel):
    """Run this graph, fetched before, on made-up weights and inputs, and say how long it takes.

    ``weights_size_bytes`` is the size of the weights file that the graph refers to. ``budget_s`` is
    about how long each of the three kinds of runs takes (as a whole, kernel by kernel, unpacked);
    ``sustained_s`` is how long the model then runs without a pause, to see whether the device slows
    down; 0 leaves that out.
    """

    kind: Literal["measure"] = "measure"
    format_version: Literal[1] = 1
    request_id: RequestId
    graph: ShardFile
    weights_size_bytes: Count
    weights: tuple[GeneratedWeight, ...] = Field(max_length=MAX_WEIGHTS)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=16)
    batch_size: int = Field(gt=0, le=4096)
    budget_s: float = Field(gt=0, le=600)
    sustained_s: float = Field(ge=0, le=3600)

    @model_validator(mode="after")
    def _weights_lie_in_the_file(self) -> Self:
        if any(w.offset + w.length > self.weights_size_bytes for w in self.weights):
            raise ValueError(f"a weight ends behind byte {self.weights_size_bytes:,}")
        if self.weight_bytes > self.weights_size_bytes:  # it would be written many times over
            raise ValueError(f"weights of {self.weight_bytes:,} bytes in all overlap")
        return self

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights themselves."""
        return sum(weight.length for weight in self.weights)


class Measuring(FrozenModel):
    """Work on a :class:`Measure` goes on; about every two seconds."""

    kind: Literal["measuring"] = "measuring"
    format_version: Literal[1] = 1
    request_id: RequestId
    step: Detail


class Timings(FrozenModel):
    """What a process that ran the graph found out.

    Times are medians in ms for a batch. ``base_bytes`` is the memory of a stage's process before
    any weight: Python with all that a device agent imports. ``load_peak_bytes`` is the most that it
    had while the graph was loaded, ``peak_bytes`` the most of all. ``unpacked_…`` is the same
    without prepacking. ``kernels`` are in the order in which they ran. ``sustained_share`` is speed
    in the last third of ``sustained_s`` over that of its first seconds.
    """

    whole_ms: Ms
    kernels: tuple[tuple[Annotated[str, Field(max_length=MAX_KERNEL_NAME)], Ms], ...] = Field(
        max_length=MAX_KERNELS
    )
    unpacked_whole_ms: Ms | None
    base_bytes: Count
    load_peak_bytes: Count
    peak_bytes: Count
    unpacked_peak_bytes: Count | None
    sustained_share: float | None = Field(gt=0)


class Measured(FrozenModel):
    """The answer to a :class:`Measure`: ``timings``, or ``error``.

    ``busy``: the device held a shard meanwhile, and may have worked on batches. ``throttled`` as in
    :class:`Examination`, after the measurement.
    """

    kind: Literal["measured"] = "measured"
    format_version: Literal[1] = 1
    request_id: RequestId
    timings: Timings | None = None
    error: Detail | None = None
    busy: bool = False
    temperature_before_celsius: float | None = None
    temperature_after_celsius: float | None = None
    throttled: int | None = Field(default=None, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.timings is None) == (self.error is None):
            raise ValueError("expected timings or an error")
        return self


class ProbeLink(FrozenModel):
    """Send messages through the broker to yourself, at QoS 1 like batches, and time them.

    ``seconds`` in all. ``only_through``: only as many as will pass, in both directions at once; all
    devices do that together to see what the broker can carry.
    """

    kind: Literal["probe_link"] = "probe_link"
    format_version: Literal[1] = 1
    request_id: RequestId
    seconds: float = Field(default=3.0, gt=0, le=60)
    small_bytes: int = Field(default=1024, gt=0, le=64 * 1024)
    large_bytes: int = Field(default=1_000_000, ge=64 * 1024, le=16_000_000)
    only_through: bool = False


class LinkProbe(FrozenModel):
    """The answer to a :class:`ProbeLink`; None where it was not asked or not measured.

    Rates in bytes a second: ``up`` from the device to the broker, ``down`` back, ``through`` what
    passed in each direction with both in use. ``latency_ms`` is one way. ``message_ms`` and
    ``byte_ms`` are what a relay (encode, send, receive, decode) costs of a saturated processor;
    ``processor_share`` is how much of one this process gets when it wants all of it.
    ``busy``: the device held a shard meanwhile.
    """

    kind: Literal["link_probe"] = "link_probe"
    format_version: Literal[1] = 1
    request_id: RequestId
    up_bytes_per_s: Rate | None = None
    down_bytes_per_s: Rate | None = None
    through_bytes_per_s: Rate | None = None
    latency_ms: Ms | None = None
    message_ms: Ms | None = None
    byte_ms: Ms | None = None
    processor_share: float | None = Field(default=None, gt=0, le=1)
    busy: bool = False
    error: Detail | None = None


Command = (
    Fetch
    | FetchProgress
    | Examine
    | Examination
    | Measure
    | Measuring
    | Measured
    | ProbeLink
    | LinkProbe
)
_ANY: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])


def parse_command(payload: bytes) -> Command:
    """Read a message of a command or an answer topic.

    Raises:
        WireFormatError: too large, not JSON, or no command of format 1.
    """
    if len(payload) > MAX_COMMAND_BYTES:
        raise WireFormatError(f"command of {len(payload):,} bytes, at most {MAX_COMMAND_BYTES:,}")
    try:
        return _ANY.validate_json(payload)
    except ValidationError as error:
        raise WireFormatError(f"not a command: {explain(error)}") from error
