"""What a device file may say of a device for planning, in fleet.yaml and in a file that is for
planning alone. Nothing of it is rendered.
"""

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from contract.described import DescribedDevice
from contract.frozen import FrozenModel
from contract.kind import Kind
from deploy.fields import Memory, Name, memory_bytes
from deploy.kinds import KINDS, KindFacts
from deploy.link import Link

BOARD_CORES = 4
"""Of every board among the kinds."""


class PlannedDevice(FrozenModel):
    """A device by name and kind; the rest has defaults.

    ``speed`` multiplies what its kind is taken for. ``cores``: how many of the board's its stage
    uses. ``profile`` is the path of what `shardline profile` wrote, beside the device file.
    """

    name: Name
    kind: Kind
    memory: Memory | None = None
    speed: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    cores: int | None = Field(default=None, ge=1)
    link: Link | None = None
    profile: str | None = Field(default=None, min_length=1)

    @field_validator("cores")
    @classmethod
    def _of_a_board(cls, cores: int | None, info: ValidationInfo) -> int | None:
        kind = info.data.get("kind")
        if cores is None or kind is None:
            return cores
        if not kind.is_board:
            raise ValueError(
                f"how the speed of {kind} depends on its cores is not known; say it with `speed`, "
                "and remove this"
            )
        if cores > BOARD_CORES:
            raise ValueError(
                f"a {kind} has {BOARD_CORES} cores, got {cores}; say what is faster with `speed`"
            )
        return cores

    @field_validator("profile")
    @classmethod
    def _instead_of_a_guess(cls, profile: str | None, info: ValidationInfo) -> str | None:
        for field in ("speed", "cores"):
            if profile is not None and info.data.get(field) is not None:
                raise ValueError(
                    f"the device was measured, so `{field}` says nothing new; remove one of the two"
                )
        return profile

    @property
    def facts(self) -> KindFacts:
        """What its kind is known for."""
        return KINDS[self.kind]

    @property
    def stage_memory(self) -> str:
        """Memory limit of its stage, as Compose reads it."""
        return self.memory or self.facts.stage_memory

    @property
    def stage_memory_bytes(self) -> int:
        """The same in bytes."""
        return memory_bytes(self.stage_memory)

    def describe(self, folder: Path, name: str | None = None) -> DescribedDevice:
        """For the planner; ``folder`` is where relative paths begin, ``name`` another name."""
        link = self.link or Link()
        return DescribedDevice(
            name=name or self.name,
            kind=self.kind,
            memory_bytes=self.stage_memory_bytes,
            speed=1.0 if self.speed is None else self.speed,
            cores=self.cores,
            up_bytes_per_s=link.up_bytes_per_s,
            down_bytes_per_s=link.down_bytes_per_s,
            latency_ms=link.latency_ms,
            profile=None if self.profile is None else str(folder / self.profile),
        )
