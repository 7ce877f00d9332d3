"""The caches of a stage in its graph: their inputs and outputs, and their numbers. Pure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnx import NodeProto

from contract.decoder import CacheSpec, Decoding
from contract.tensor_spec import BATCH, TensorSpec

if TYPE_CHECKING:
    from planner.canonical import CanonicalModel

ATTENTION = "GroupQueryAttention"
"""The operator that reads and writes a layer's cache, by which layers are counted."""
PAST_INPUTS = (3, 4)
PRESENT_OUTPUTS = (1, 2)
"""Where keys and values stand among the operator's inputs and outputs."""
KINDS = ("key", "value")
LAST_INDEX = "shardline/last_position"
"""The constant by which the last position is taken, in one node before the head."""
SEQLENS, TOTAL = "seqlens_k", "total_sequence_length"


def is_attention(node: NodeProto) -> bool:
    """Whether a node has a layer's cache."""
    return node.op_type == ATTENTION


def query_heads(body: Sequence[NodeProto]) -> int:
    """The most query heads of any attention among the nodes; 0 where none attends."""
    return max(
        (
            attribute.i
            for node in filter(is_attention, body)
            for attribute in node.attribute
            if attribute.name == "num_heads"
        ),
        default=0,
    )


def cache_of(model: "CanonicalModel", body: Sequence[NodeProto]) -> CacheSpec | None:
    """The caches of a part of a model; None where it is no language model."""
    if model.cache is None:
        return None
    return model.cache.model_copy(update={"layers": sum(map(is_attention, body))})


def number_caches(body: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes with the caches of their layers counted from 0."""
    numbered = []
    layer = 0
    for node in body:
        if is_attention(node):
            own = NodeProto()
            own.CopyFrom(node)
            for kind, past, present in zip(KINDS, PAST_INPUTS, PRESENT_OUTPUTS, strict=True):
                own.input[past] = f"past_{kind}.{layer}"
                own.output[present] = f"present_{kind}.{layer}"
            layer += 1
            numbered.append(own)
        else:
            numbered.append(node)
    return numbered


def state_inputs(cache: CacheSpec, decoding: Decoding) -> tuple[TensorSpec, ...]:
    """What a stage's graph takes beside the activation: where it stands, and its caches."""
    return (
        TensorSpec(name=SEQLENS, dtype="int32", shape=(BATCH,)),
        TensorSpec(name=TOTAL, dtype="int32", shape=()),
        *_caches("past", cache, decoding),
    )


def state_outputs(cache: CacheSpec, decoding: Decoding) -> tuple[TensorSpec, ...]:
    """What it gives beside the activation."""
    return _caches("present", cache, decoding)


def _caches(when: str, cache: CacheSpec, decoding: Decoding) -> tuple[TensorSpec, ...]:
    shape = (BATCH, cache.kv_heads, decoding.context_tokens, cache.head_size)
    return tuple(
        TensorSpec.model_validate(
            {"name": f"{when}_{kind}.{layer}", "dtype": "float32", "shape": shape}
        )
        for layer in range(cache.layers)
        for kind in KINDS
    )
