"""Words of a plan: one stage, its files, and the tensors at both ends."""

from pydantic import Field

from contract.codec import Codec, encoded_bytes
from contract.decoder import CacheSpec
from contract.frozen import Count, FrozenModel
from contract.placement import MAX_STAGES
from contract.tensor_spec import MAX_TENSORS, TensorSpec


class ShardFile(FrozenModel):
    """One file of a shard."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: Count


class StageSpec(FrozenModel):
    """One stage: a half-open range of segments, its files, and the tensors at both ends.

    ``codec`` is how its outputs travel. It is part of the computation: it may change the answer.
    """

    stage_index: int = Field(ge=0, lt=MAX_STAGES)
    first_segment: Count
    end_segment: int = Field(gt=0)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=MAX_TENSORS)
    codec: Codec = "float32"
    graph: ShardFile
    weights: ShardFile
    weight_bytes: Count
    flops_per_image: Count
    predicted_ms_per_batch: float | None = Field(default=None, ge=0)
    cache: CacheSpec | None = None

    @property
    def folder(self) -> str:
        """Name of the stage's folder beside ``plan.json``."""
        return f"stage-{self.stage_index}"

    @property
    def input_bytes_per_image(self) -> int:
        """Bytes of activations taken for one image, after any codec."""
        return sum(spec.bytes_per_image for spec in self.inputs)

    @property
    def output_bytes_per_image(self) -> int:
        """Bytes of activations sent for one image, as the codec makes them."""
        return encoded_bytes(self.codec, self.outputs, 1)
