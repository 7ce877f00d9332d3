"""What the devices of a fleet measured: how fast each runs the segments of one model, its memory,
its link to the broker. Written by `shardline profile`, read when a plan is made for these devices.

Times are medians in ms for one batch, rates bytes a second.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from contract.command import Ms, Rate
from contract.errors import SettingsError
from contract.frozen import FrozenModel, explain

MAX_PROFILE_BYTES = 16 * 1024 * 1024
DEFAULT_PACKING_FACTOR = 2.0
"""Where weights are too few to see it: the engine keeps a reordered copy beside the original."""
BatchSize = Annotated[int, Field(gt=0, le=4096)]


class BatchTimings(FrozenModel):
    """One batch size on one device. ``segment_ms`` adds up to ``whole_ms``.

    ``unpacked_…``: without the reordered copy of the weights, None where that was not measured.
    """

    batch_size: BatchSize
    segment_ms: tuple[Ms, ...] = Field(min_length=1)
    unpacked_ms: tuple[Ms, ...] | None = None
    whole_ms: Ms
    unpacked_whole_ms: Ms | None = None

    @property
    def images_per_s(self) -> float:
        """Of one device that runs the whole model, without any message."""
        return 1e3 * self.batch_size / max(self.whole_ms, 1e-9)

    @model_validator(mode="after")
    def _as_many_segments(self) -> Self:
        if self.unpacked_ms is not None and len(self.unpacked_ms) != len(self.segment_ms):
            raise ValueError("segment_ms and unpacked_ms tell of different numbers of segments")
        return self


class DeviceProfile(FrozenModel):
    """One device. Devices of one ``kind`` run the same things as fast; one of them is measured.

    ``kind`` is the board's name (or that of machine and processor) and what its container may use.
    ``threads`` are the engine's. ``memory_available_bytes`` is what is free for a stage's process,
    with what it has now; ``memory_limit_bytes`` the container's limit, None without one.
    ``base_bytes`` is what such a process needs before any weight, ``packing_factor`` the bytes of
    memory for a byte of weights when prepacked, ``unpacked_factor`` when not (with activations;
    None where weights are too few to tell), ``activation_bytes`` what running needed beyond the
    peak of loading at the largest batch size that was measured; None for nothing.
    ``relay_…`` is the processor's time for each message received and sent on, and for each byte of
    it. ``sustained_share`` is speed after a while without a pause over speed at first.
    ``throttled`` is the firmware's word after measuring, see
    :class:`contract.command.Examination`. ``busy``: it held a shard meanwhile. Links are None where
    they were not measured; ``link_latency_ms`` is one way.
    """

    device: str
    kind: str = Field(max_length=500)
    machine: str
    engine: str
    engine_version: str
    cores: int = Field(gt=0)
    threads: int = Field(gt=0)
    memory_available_bytes: int = Field(ge=0)
    memory_limit_bytes: int | None = Field(default=None, ge=0)
    base_bytes: int = Field(ge=0)
    packing_factor: float = Field(default=DEFAULT_PACKING_FACTOR, ge=1)
    unpacked_factor: float | None = Field(default=None, ge=1)
    activation_bytes: int | None = Field(default=None, ge=0)
    timings: tuple[BatchTimings, ...] = Field(min_length=1)
    relay_message_ms: Ms
    relay_byte_ms: Ms
    sustained_share: float | None = Field(default=None, gt=0)
    temperature_before_celsius: float | None = None
    temperature_after_celsius: float | None = None
    throttled: int | None = Field(default=None, ge=0)
    busy: bool = False
    link_up_bytes_per_s: Rate | None = None
    link_down_bytes_per_s: Rate | None = None
    link_latency_ms: Ms | None = None
    time_unix_s: float

    def timings_of(self, batch_size: int) -> BatchTimings | None:
        """The times at a batch size, None if it was not measured."""
        return next((t for t in self.timings if t.batch_size == batch_size), None)


class FleetProfile(FrozenModel):
    """The devices of a fleet and one model. ``digest`` is that of the canonical graph.

    ``broker_bytes_per_s`` is what passed the broker, in each direction, with all devices sending at
    once. It is the broker's limit only where ``broker_saturated``: the devices got less together
    than one by one. Otherwise their own links were the limit, and the broker's is higher.
    """

    format_version: Literal[1] = 1
    digest: str
    model: str
    batch_sizes: tuple[BatchSize, ...] = Field(min_length=1)
    devices: tuple[DeviceProfile, ...] = Field(min_length=1)
    broker_bytes_per_s: Rate | None = None
    broker_saturated: bool = False
    broker_message_ms: Ms | None = None
    broker_byte_ms: Ms | None = None
    time_unix_s: float

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [device.device for device in self.devices]
        if len(names) != len(set(names)):
            raise ValueError("a device is named twice")
        counts = {len(t.segment_ms) for device in self.devices for t in device.timings}
        if len(counts) != 1:
            raise ValueError(f"the devices tell of {sorted(counts)} segments: expected one number")
        for device in self.devices:
            measured = sorted(t.batch_size for t in device.timings)
            if measured != sorted(self.batch_sizes):
                raise ValueError(f"{device.device} has batch sizes {measured}, not all or others")
        return self

    @property
    def num_segments(self) -> int:
        """How many segments the model has."""
        return len(self.devices[0].timings[0].segment_ms)

    def device(self, name: str) -> DeviceProfile | None:
        """A device by its name."""
        return next((device for device in self.devices if device.device == name), None)

    def to_json(self) -> str:
        """The document of the file."""
        return self.model_dump_json(indent=1)


def parse_profile(document: str | bytes, where: str) -> FleetProfile:
    """Read a profile from JSON; ``where`` names its origin in errors.

    Raises:
        SettingsError: too large, not JSON, another format version, or inconsistent.
    """
    if len(document) > MAX_PROFILE_BYTES:
        raise SettingsError(
            f"{where}: {len(document):,} bytes, a profile has at most {MAX_PROFILE_BYTES:,}"
        )
    try:
        return FleetProfile.model_validate_json(document)
    except ValidationError as error:
        raise SettingsError(
            f"{where}: not a profile of format 1 ({explain(error)}); measure again with "
            "`shardline profile`"
        ) from error


def load_profile(path: Path) -> FleetProfile:
    """Read the file that `shardline profile` wrote.

    Raises:
        SettingsError: the file is not there or is not a profile.
    """
    try:
        document = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot read a profile ({error.strerror}); expected a file that "
            "`shardline profile` wrote, for example shards/built/profiles/resnet18.json"
        ) from error
    return parse_profile(document, str(path))
