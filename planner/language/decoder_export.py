"""Exports a transformers decoder to ONNX with explicit caches, without its weights.

Parameters become inputs of the graph while it is tidied, so that nothing is computed from the
stand-ins that they are here; :mod:`planner.language.canonical` gives them their bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir
import onnxscript.optimizer
import torch
from onnx import ModelProto
from onnx_ir.passes.common import CommonSubexpressionEliminationPass
from torch import Tensor, nn

from contract.decoder import IDS
from contract.errors import ModelError
from contract.tensor_spec import BATCH, TOKENS
from planner.export import OPSET, quiet
from planner.language import attention
from planner.language.attention import Caches, make_cache
from planner.language.facts import DecoderFacts
from planner.language.stand_ins import (
    build_without_weights,
    make_exportable,
    names_of_parameters,
)

SEQLENS, TOTAL, LOGITS = "seqlens_k", "total_sequence_length", "logits"
LAST_POSITION = "LastPosition"
"""Our own operator in the exported graph: of (batch, tokens, …) the last position, (batch, …)."""
DOMAIN = "shardline"
EXAMPLE_BATCH, EXAMPLE_TOKENS, EXAMPLE_CONTEXT = 2, 5, 11
_PREFIX = "model."


@dataclass(frozen=True)
class ExportedDecoder:
    """A decoder's graph. ``parameters``: inputs of the graph that are weights, with all their names
    and their shapes; ``aliases`` has more than one name for tied weights."""

    graph: ModelProto
    parameters: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, tuple[str, ...]]


class _Step(nn.Module):
    """One step of a decoder on given caches: what the graph computes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        token_ids: Tensor,
        seqlens_k: Tensor,
        total: Tensor,
        past_keys: list[Tensor],
        past_values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        caches = Caches(past_keys, past_values, seqlens_k, total)
        tokens = token_ids.shape[1]
        positions = torch.arange(tokens) + (total.to(torch.int64) - tokens)
        found: dict[str, Tensor] = {}

        def only_last(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            found["hidden"] = inputs[0]
            return (_last_position(inputs[0]), *inputs[1:])

        head = self.model.get_output_embeddings()  # type: ignore[operator]
        handle = head.register_forward_pre_hook(only_last)
        try:
            result = self.model(
                input_ids=token_ids,
                position_ids=positions.unsqueeze(0),
                past_key_values=make_cache(caches),
                use_cache=True,
            )
        finally:
            handle.remove()
        return (result.logits, *caches.outputs())


def export_decoder(config: Any, facts: DecoderFacts) -> ExportedDecoder:
    """The graph of one step: token ids and caches in, logits of the last position and caches out.

    Its inputs and outputs are those of contract/decoder.py, with the parameters as further inputs.

    Raises:
        ModelError: transformers cannot build the model, or the exporter cannot handle it.
    """
    attention.register()
    model = build_without_weights(config, attention.NAME)
    shapes = {name: tuple(its.shape) for name, its in model.named_parameters()}
    aliases = names_of_parameters(model)
    make_exportable(model)
    try:
        with quiet(), torch.no_grad():
            exported = _export(_Step(model), facts)
    except ModelError:
        raise
    except Exception as error:  # the exporter raises its own and torch's errors, any of them
        cause: BaseException = error
        while cause.__cause__ is not None:
            if isinstance(cause, ModelError):
                break
            cause = cause.__cause__
        if isinstance(cause, ModelError):
            raise cause from error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ModelError(
            f"torch {torch.__version__} cannot export a {facts.model_type} decoder: {reason:.300}; "
            "its forward pass must not depend on values of the data"
        ) from error
    first_name = {other: name for name, others in aliases.items() for other in others}
    return ExportedDecoder(_tidied(exported, first_name), shapes, aliases)


def _export(step: _Step, facts: DecoderFacts) -> onnx_ir.Model:
    size = (EXAMPLE_BATCH, facts.kv_heads, EXAMPLE_CONTEXT, facts.head_size)
    # Tensors of their own: the exporter takes one that comes twice for one input.
    past_keys, past_values = (
        [torch.zeros(1).expand(size) for _ in range(facts.layers)] for _ in range(2)
    )
    batch, tokens = torch.export.Dim(BATCH), torch.export.Dim(TOKENS)
    layers = range(facts.layers)
    program = torch.onnx.export(
        step,
        (
            torch.zeros(EXAMPLE_BATCH, EXAMPLE_TOKENS, dtype=torch.int64),
            torch.full((EXAMPLE_BATCH,), EXAMPLE_TOKENS - 1, dtype=torch.int32),
            torch.tensor(EXAMPLE_TOKENS, dtype=torch.int32),
            past_keys,
            past_values,
        ),
        dynamo=True,
        dynamic_shapes=(
            {0: batch, 1: tokens},
            {0: batch},
            {},
            [{0: batch}] * facts.layers,
            [{0: batch}] * facts.layers,
        ),
        opset_version=OPSET,
        optimize=False,
        verbose=False,
        input_names=[
            *(IDS, SEQLENS, TOTAL),
            *(f"past_key.{layer}" for layer in layers),
            *(f"past_value.{layer}" for layer in layers),
        ],
        output_names=[
            LOGITS,
            *(f"present_{kind}.{layer}" for layer in layers for kind in ("key", "value")),
        ],
    )
    if program is None:
        raise ModelError("the exporter returned nothing")
    return program.model


def _tidied(model: onnx_ir.Model, first_name: Mapping[str, str]) -> ModelProto:
    """Constants computed, what stands there twice computed once; parameters as inputs.

    ``first_name``: of each parameter by any of its names.
    """
    graph = model.graph
    for name in list(graph.initializers):
        parameter = first_name.get(name.removeprefix(_PREFIX))
        if parameter is not None:
            value = graph.initializers.pop(name)
            value.const_value = None
            value.name = parameter
            graph.inputs.append(value)
    onnxscript.optimizer.optimize(model)
    CommonSubexpressionEliminationPass()(model)
    proto = onnx_ir.serde.serialize_model(model)
    assert isinstance(proto, ModelProto)
    return proto


def _last_position(hidden: Tensor) -> Tensor:
    output: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{LAST_POSITION}",
        (hidden,),
        dtype=hidden.dtype,
        shape=(hidden.shape[0], *hidden.shape[2:]),
        version=1,
    )
    return output
