"""What stands in for attention and its cache while a transformers model is exported.

transformers asks a registered function for attention, with rotary embedding already applied, and a
cache object for keys and values. Ours call onnxruntime's GroupQueryAttention, which keeps a buffer
of all positions, is causal by itself, and needs no mask (transformers makes none for attention that
it does not know the masks of).
Operator: onnxruntime's docs/ContribOperators.md, com.microsoft.GroupQueryAttention.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import ModelError
from planner.language.stand_ins import import_transformers

NAME = "shardline"
IGNORED = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position"}
"""What models tell their attention that changes nothing here: the operator knows positions."""


@dataclass
class Caches:
    """The past of every layer, and what attention made of it, for one pass."""

    past_keys: Sequence[Tensor]
    past_values: Sequence[Tensor]
    seqlens_k: Tensor
    total: Tensor
    present: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def outputs(self) -> list[Tensor]:
        """present_key.0, present_value.0, present_key.1, …

        Raises:
            ModelError: a layer has no attention that uses the cache.
        """
        missing = set(range(len(self.past_keys))) - self.present.keys()
        if missing:
            raise ModelError(
                f"layers {sorted(missing)[:5]} have no attention with keys and values; only "
                "decoders whose every layer has can be planned"
            )
        return [tensor for layer in range(len(self.present)) for tensor in self.present[layer]]


_current: ContextVar[Caches] = ContextVar("caches of the pass that is traced")


def make_cache(caches: Caches) -> Any:
    """A transformers cache that hands new keys and values through; the operator stores them."""
    library = import_transformers()

    class PassedThrough(library.Cache):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.layers: list[Any] = []
            self.layer_class_to_replicate = None
            self.offloading = False

        def update(self, key: Tensor, value: Tensor, *_args: Any) -> tuple[Tensor, Tensor]:
            return key, value

        def get_seq_length(self, *_args: Any) -> int:
            return 0

    _current.set(caches)
    return PassedThrough()


def register() -> None:
    """Make the attention known to transformers under :data:`NAME`."""
    import_transformers().AttentionInterface.register(NAME, _attend)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query (batch, heads, tokens, head_size), key and value with kv_heads; see transformers."""
    caches = _current.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    unknown = {name for name, its in others.items() if its is not None} - IGNORED
    if attention_mask is not None or unknown or not getattr(module, "is_causal", True):
        raise ModelError(
            f"layer {layer}: its attention uses {', '.join(sorted(unknown)) or 'a mask of its own'}"
            ", which GroupQueryAttention does not; this architecture cannot be planned"
        )
    batch, heads, tokens, head_size = query.shape
    past_key, past_value = caches.past_keys[layer], caches.past_values[layer]
    for tensor, past in ((key, past_key), (value, past_value)):
        if (tensor.shape[1], tensor.shape[3]) != (past.shape[1], past.shape[3]):
            raise ModelError(
                f"layer {layer}: {tensor.shape[1]} key-value heads of {tensor.shape[3]}, the "
                f"configuration says {past.shape[1]} of {past.shape[3]}; layers of different kinds "
                "cannot be planned"
            )
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": key.shape[1],
        "scale": float(head_size**-0.5 if scaling is None else scaling),
        "do_rotary": 0,
    }
    if sliding_window is not None:
        attributes["local_window_size"] = int(sliding_window) - 1  # it counts those before
    if softcap is not None:
        attributes["softcap"] = float(softcap)
    output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (
            *(_packed(tensor) for tensor in (query, key, value)),
            *(past_key, past_value, caches.seqlens_k, caches.total),
        ),
        attrs=attributes,
        dtypes=(query.dtype, past_key.dtype, past_value.dtype),
        shapes=((batch, tokens, heads * head_size), past_key.shape, past_value.shape),
        version=1,
    )
    caches.present[layer] = (present_key, present_value)
    return output.view(batch, tokens, heads, head_size), None


def _packed(tensor: Tensor) -> Tensor:
    """(batch, heads, tokens, size) -> (batch, tokens, heads * size)"""
    return tensor.transpose(1, 2).flatten(2)
