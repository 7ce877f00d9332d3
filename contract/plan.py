"""The plan: how a model is cut, what each stage takes and gives, and which device runs it.

``plan_id`` is a content hash of the *computation* (the model's digest, the shard files, the tensors
at every cut), not of the placement or the predictions: re-placing the same stages on other devices
keeps the id, so batches in flight stay valid; any other cut or weight changes it (docs/adr/0011).
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from contract.codec import Codec as Codec  # it is a word of the plan
from contract.codec import encoded_bytes
from contract.decoder import IDS_SPEC, RESULT_SPECS, SAMPLING_SPEC, Decoding
from contract.decoder import TokenInput as TokenInput  # a word of the plan
from contract.errors import PlanError
from contract.frozen import FrozenModel, explain
from contract.model_info import ImageInput as ImageInput  # words of the plan
from contract.model_info import ModelInfo as ModelInfo
from contract.model_info import TensorInput as TensorInput
from contract.placement import MAX_STAGES, map_topics
from contract.placement import EdgeBroker as EdgeBroker  # words of the plan
from contract.placement import Placement as Placement
from contract.placement import Replica as Replica
from contract.placement import StageTopics as StageTopics
from contract.prediction import Measurement, Prediction, SegmentCosts, Verdict
from contract.stage_spec import ShardFile as ShardFile  # words of the plan
from contract.stage_spec import StageSpec as StageSpec
from contract.tensor_spec import TensorSpec
from contract.verification import CodecVerification as CodecVerification  # words of the plan
from contract.verification import Verification as Verification

FORMAT_VERSION: Literal[2] = 2
PLAN_FILE = "plan.json"
MAX_PLAN_BYTES = 4 * 1024 * 1024
MAX_BATCH_SIZE = 4096
MAX_MESSAGE_BYTES = 268_435_455
"""What MQTT itself can carry (MQTT 5.0, section 1.5.5): a plan with larger messages cannot run."""


class Plan(FrozenModel):
    """Stages, placement, topic map, tensor specs and what was measured when it was built."""

    format_version: Literal[2] = FORMAT_VERSION
    plan_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    name: str
    model: ModelInfo
    batch_size: int = Field(gt=0, le=MAX_BATCH_SIZE)
    stages: tuple[StageSpec, ...] = Field(min_length=1, max_length=MAX_STAGES)
    tied_weights: tuple[str, ...] = ()
    decoding: Decoding | None = None
    verified_with: Mapping[str, str]
    verification: Verification
    placement: tuple[Placement, ...] = ()
    topic_map: tuple[StageTopics, ...] = ()
    edge_brokers: tuple[EdgeBroker, ...] = ()
    segments: tuple[SegmentCosts, ...] = ()
    prediction: Prediction | None = None
    verdict: Verdict | None = None
    measurement: Measurement | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if [stage.stage_index for stage in self.stages] != list(range(len(self.stages))):
            raise ValueError("stages must be numbered 0, 1, 2, … in order")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if before.outputs != after.inputs:
                raise ValueError(
                    f"stage {before.stage_index} gives {before.outputs}, "
                    f"stage {after.stage_index} takes {after.inputs}"
                )
            if before.end_segment != after.first_segment:
                raise ValueError(f"segments between stages {before.stage_index} and next differ")
        if self.stages[-1].codec != "float32":
            raise ValueError(
                f"stage {len(self.stages) - 1} is the last and has codec {self.stages[-1].codec}: "
                "results travel as float32, as they are"
            )
        if any((stage.cache is None) != (self.decoding is None) for stage in self.stages):
            raise ValueError("`decoding` and every stage's `cache` go together")
        if (self.model.input.kind == "tokens") != (self.decoding is not None):
            raise ValueError("`decoding` is there where the model takes tokens, and only there")
        if self.placement and [p.stage_index for p in self.placement] != [
            stage.stage_index for stage in self.stages
        ]:
            raise ValueError("the placement must name every stage once, in order")
        devices = [replica.device for place in self.placement for replica in place.replicas]
        if len(devices) != len(set(devices)):
            raise ValueError("a device holds one shard: the placement names one device twice")
        edges = [broker.edge for broker in self.edge_brokers]
        if len(edges) != len(set(edges)) or any(edge > len(self.stages) for edge in edges):
            raise ValueError(
                f"edge_brokers name the edges {edges}: expected each once, 0 to {len(self.stages)}"
            )
        if self.max_message_bytes() > MAX_MESSAGE_BYTES:
            raise ValueError(
                f"messages of {self.max_message_bytes():,} bytes: MQTT carries at most "
                f"{MAX_MESSAGE_BYTES:,}; use a smaller batch than {self.batch_size}"
            )
        expected = compute_plan_id(self.model.digest, self.stages, self.decoding, self.batch_size)
        if self.plan_id != expected:
            raise ValueError("plan_id is not the hash of this plan's stages")
        return self

    @property
    def num_stages(self) -> int:
        """How many stages the plan has."""
        return len(self.stages)

    def stage_of(self, device: str) -> StageSpec | None:
        """The stage that ``device`` serves, if any."""
        for place in self.placement:
            if any(replica.device == device for replica in place.replicas):
                return self.stages[place.stage_index]
        return None

    def replica_of(self, device: str) -> Replica | None:
        """What the placement says of ``device``, if it serves a stage."""
        replicas = (replica for spot in self.placement for replica in spot.replicas)
        return next((replica for replica in replicas if replica.device == device), None)

    def edge_addresses(self, edges: Collection[int] | None = None) -> dict[int, str]:
        """The brokers of these edges (of all, for None) that are not on the main broker."""
        return {
            broker.edge: broker.address
            for broker in self.edge_brokers
            if edges is None or broker.edge in edges
        }

    def codec_of_edge(self, edge: int) -> Codec:
        """How an edge travels: edge ``k`` carries the inputs of stage ``k``, the last one results.

        Inputs and results always travel as they are: float32.
        """
        return self.stages[edge - 1].codec if edge else "float32"

    def edge_specs(self, edge: int) -> tuple[TensorSpec, ...]:
        """Tensors of a message on an edge, before any codec.

        A language model's hold more than what its stages compute with: see contract/decoder.py.
        """
        if self.decoding is None:
            return self.stages[edge - 1].outputs if edge else self.stages[0].inputs
        if edge == self.num_stages:
            return RESULT_SPECS
        hidden = self.stages[edge - 1].outputs if edge else ()
        return (*hidden, IDS_SPEC, SAMPLING_SPEC)

    def edge_bytes(self, edge: int, images: int) -> int:
        """Bytes of the tensors of one message of ``images`` images on edge ``edge``, at most."""
        tokens = 1 if self.decoding is None else self.decoding.chunk_tokens
        return encoded_bytes(self.codec_of_edge(edge), self.edge_specs(edge), images, tokens)

    def max_message_bytes(self, batch_size: int | None = None) -> int:
        """Upper bound of any message of this plan at a batch size, header included."""
        images = self.batch_size if batch_size is None else batch_size
        return max(self.edge_bytes(e, images) for e in range(self.num_stages + 1)) + 64 * 1024

    def to_json(self) -> str:
        """The document of ``plan.json``."""
        return self.model_dump_json(indent=1)

    def to_message(self) -> str:
        """The retained plan message: the plan without what only whoever planned it reads."""
        report = {"segments": (), "verdict": None, "measurement": None}
        return self.model_copy(update=report).model_dump_json()


def compute_plan_id(
    digest: str, stages: Sequence[StageSpec], decoding: Decoding | None = None, batch_size: int = 1
) -> str:
    """First 16 hex digits of the sha256 over the computation that a plan describes.

    Of a language model that includes what its caches and messages have room for: a stage that holds
    the same shard for fewer or shorter sequences cannot serve the plan as it is.
    """
    computation: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "digest": digest,
        "stages": [
            stage.model_dump(
                include={"inputs", "outputs", "codec", "graph", "weights"}, mode="json"
            )
            for stage in stages
        ],
    }
    if decoding is not None:
        room = decoding.model_dump(include={"context_tokens", "sequences", "chunk_tokens"})
        computation["decoding"] = room | {"batch_size": batch_size}
    canonical = json.dumps(computation, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def place(
    plan: Plan,
    devices: Sequence[Sequence[Replica]],
    cluster: str,
    edge_brokers: Sequence[EdgeBroker] = (),
) -> Plan:
    """The same plan on other devices, with the topic map that follows from it.

    ``edge_brokers`` belong to the placement: those that the plan had before are not kept. Nor are
    prediction, verdict and measurement, where the devices of a stage are others than before.

    Raises:
        PlanError: there is not at least one device for every stage, or one is named twice; an edge
            is named twice or is none of the plan's.
        SettingsError: the cluster's name cannot be one.
    """
    if len(devices) != plan.num_stages:
        raise PlanError(
            f"plan {plan.name}: {plan.num_stages} stages need as many devices, got {len(devices)}"
        )
    try:
        places = tuple(
            Placement(stage_index=index, replicas=tuple(replicas))
            for index, replicas in enumerate(devices)
        )
        placed = {
            **dict(plan),
            "placement": places,
            "topic_map": map_topics(plan.plan_id, places, cluster),
            "edge_brokers": tuple(edge_brokers),
        }
        if places != plan.placement:
            placed |= {"prediction": None, "verdict": None, "measurement": None}
        return Plan.model_validate(placed)
    except ValidationError as error:
        raise PlanError(f"plan {plan.name}: {explain(error)}") from error


def parse_plan(document: str | bytes, where: str) -> Plan:
    """Read a plan from JSON; ``where`` names its origin in errors.

    Raises:
        PlanError: too large, not JSON, another format version, or inconsistent.
    """
    if len(document) > MAX_PLAN_BYTES:
        raise PlanError(f"{where}: {len(document):,} bytes, a plan has at most {MAX_PLAN_BYTES:,}")
    try:
        return Plan.model_validate_json(document)
    except ValidationError as error:
        raise PlanError(
            f"{where}: not a plan of format {FORMAT_VERSION} ({explain(error)}); "
            "build it again with `shardline plan`"
        ) from error


def load_plan(path: Path) -> Plan:
    """Read ``plan.json``, given the file or its folder.

    Raises:
        PlanError: the file is not there or is not a plan.
    """
    file = path / PLAN_FILE if path.is_dir() else path
    try:
        document = file.read_bytes()
    except OSError as error:
        raise PlanError(
            f"{file}: cannot read a plan ({error.strerror}); expected the folder that "
            "`shardline plan` wrote, for example shards/built/resnet18"
        ) from error
    return parse_plan(document, str(file))


def save_plan(plan: Plan, path: Path) -> Path:
    """Write ``plan.json``, given the file or its folder, in one step; the file written.

    Raises:
        PlanError: it cannot be written there.
    """
    file = path / PLAN_FILE if path.is_dir() else path
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(plan.to_json() + "\n")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PlanError(f"{file}: cannot write the plan ({error.strerror})") from error
    return file
