"""Brings an exported decoder into the canonical form that everything after works on.

Shapes follow from two roots, batch and tokens; linear layers hold their weights as they are
multiplied; parameters lie in one safetensors file, written tensor by tensor. The same model and
settings give the same bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from contract.decoder import IDS, CacheSpec, Decoding
from contract.errors import ModelError
from contract.plan import ModelInfo, TokenInput
from contract.tensor_spec import BATCH, TOKENS, TensorSpec
from planner.batch_root import ROOT, TOKENS_ROOT, root_node, tokens_root_node
from planner.canonical import CanonicalModel
from planner.export import scopes_of
from planner.importers.transformers_directory import ImportedDecoder
from planner.language.checkpoint import Checkpoint
from planner.language.decoder_export import LAST_POSITION, LOGITS
from planner.language.mapped import MappedWeights
from planner.language.parameters import Parameter, fold_transposes, used_parameters
from planner.language.quantise import quantise_products
from planner.language.rewrite import divide
from planner.language.state import LAST_INDEX, SEQLENS, state_inputs, state_outputs
from planner.language.tensors import read_tensors
from planner.onnx_graph import (
    Array,
    external_tensor,
    live_nodes,
    make_model,
    node_inputs,
    to_bytes,
)
from planner.progress import Progress, silent
from planner.scratch import ScratchFolder
from shards.manifest import GRAPH_FILE, WEIGHTS_FILE
from shards.weights_file import read_layout
from shards.weights_writer import write_weights
from shards.writer import ByteRange, describe_file

OPSETS = {"": 20, "com.microsoft": 1}


@dataclass
class _Draft:
    """A graph in the making: nodes, the constants that stay in it, the weights that leave it."""

    nodes: list[NodeProto]
    constants: dict[str, Array]
    parameters: dict[str, Parameter]


def canonicalise_decoder(
    imported: ImportedDecoder, decoding: Decoding, progress: Progress = silent
) -> CanonicalModel:
    """The canonical model, its weights in a scratch folder, written one at a time.

    Raises:
        ModelError: the context is longer than the model's positions, or the graph has no form that
            can be cut.
        WeightsError: a tensor cannot be read.
        EnvironmentMissingError: there is no room for the weights in the folder of temporary files.
    """
    facts = imported.facts
    if decoding.context_tokens > facts.max_positions:
        raise ModelError(
            f"{imported.name}: --context {decoding.context_tokens:,} is longer than the model's "
            f"{facts.max_positions:,} positions; ask for at most so many"
        )
    tensors = read_tensors(imported.exported.graph)
    draft = _read(imported)
    cache = CacheSpec(layers=facts.layers, kv_heads=facts.kv_heads, head_size=facts.head_size)
    divide(draft.nodes)
    fold_transposes(draft.nodes, draft.parameters)
    if decoding.quantisation != "none":
        quantise_products(draft.nodes, draft.parameters, decoding.quantisation)
    outputs = [LOGITS, *(spec.name for spec in state_outputs(cache, decoding))]
    draft.nodes = live_nodes(draft.nodes, outputs)
    folder = ScratchFolder()
    shard = folder.path / "whole"
    used = used_parameters(draft.nodes, draft.parameters)
    size_bytes = sum(each.spec.size_bytes for each in used.values())
    with folder.writing(size_bytes):
        shard.mkdir()
        places, weights_sha256 = _write(used, imported.checkpoint, shard / WEIGHTS_FILE, progress)
    inputs = (TensorSpec(name=IDS, dtype="int64", shape=(BATCH, TOKENS)),)
    logits = TensorSpec(name=LOGITS, dtype="float32", shape=(BATCH, facts.vocabulary_size))
    model = _assemble(
        draft,
        used,
        places,
        (*inputs, *state_inputs(cache, decoding)),
        (logits, *state_outputs(cache, decoding)),
    )
    graph = to_bytes(model)
    with folder.writing(size_bytes + len(graph)):
        (shard / GRAPH_FILE).write_bytes(graph)
    return CanonicalModel(
        info=ModelInfo(
            name=imported.name,
            weights=imported.checkpoint.provenance,
            digest=hashlib.sha256(graph + weights_sha256.encode()).hexdigest(),
            input=TokenInput(
                architecture=facts.architecture,
                vocabulary_size=facts.vocabulary_size,
                end_tokens=facts.end_tokens,
            ),
        ),
        folder=folder,
        graph=model,
        weights=MappedWeights(
            shard / WEIGHTS_FILE, {name: each.spec for name, each in used.items()}, places
        ),
        places=places,
        tensors=tensors,
        scopes=scopes_of(imported.exported.graph, "model"),
        prefix_nodes=0,
        inputs=inputs,
        outputs=(logits,),
        decoding=decoding,
        cache=cache,
    )


def _read(imported: ImportedDecoder) -> _Draft:
    """The exported graph with shapes from the roots, our own operator replaced, names tidied."""
    graph = imported.exported.graph.graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    constants[LAST_INDEX] = np.array(-1, np.int64)
    nodes = [root_node(IDS), tokens_root_node(IDS)]
    for node in graph.node:
        own = NodeProto()
        own.CopyFrom(node)
        # Exporters leave stack traces with paths of the machine in here.
        del own.metadata_props[:]
        own.ClearField("doc_string")
        if own.op_type == "Constant":
            constants[own.output[0]] = numpy_helper.to_array(own.attribute[0].t)
        elif own.op_type == "Shape":
            nodes += _from_roots(own, imported, constants)
        elif own.op_type == LAST_POSITION:
            inputs = [own.input[0], LAST_INDEX]
            nodes.append(helper.make_node("Gather", inputs, own.output[:1], axis=1))
        else:
            nodes.append(own)
    for node in nodes:
        node.name = node.output[0]
    parameters = {
        name: Parameter(imported.keys[name], shape)
        for name, shape in imported.exported.parameters.items()
    }
    return _Draft(nodes, constants, parameters)


def _from_roots(
    node: NodeProto, imported: ImportedDecoder, constants: dict[str, Array]
) -> list[NodeProto]:
    """A shape of a graph's input as arithmetic on the roots; any other shape as it is."""
    dims: list[str | int] = [BATCH]
    if node.input[0] == IDS:
        dims = [BATCH, TOKENS]
    elif node.input[0].startswith("past_"):
        dims = [BATCH, imported.facts.kv_heads, -1, imported.facts.head_size]
    elif node.input[0] != SEQLENS:
        return [node]
    limits = {attribute.name: attribute.i for attribute in node.attribute}
    wanted = dims[limits.get("start", 0) : limits.get("end", len(dims))]
    if -1 in wanted:
        raise ModelError(f"{imported.name}: the graph computes with the size of its cache")
    parts = []
    for dim in wanted:
        if isinstance(dim, str):
            parts.append(ROOT if dim == BATCH else TOKENS_ROOT)
        else:
            name = f"shardline/size_{dim}"
            constants[name] = np.array([dim], np.int64)
            parts.append(name)
    output = node.output[:1]
    if len(parts) == 1:
        return [helper.make_node("Identity", parts, output)]
    return [helper.make_node("Concat", parts, output, axis=0)]


def _write(
    used: Mapping[str, Parameter], checkpoint: Checkpoint, path: Path, progress: Progress
) -> tuple[dict[str, ByteRange], str]:
    """Write the weights; returns where they lie, and the file's hash."""
    count = 0

    def read(name: str) -> Array:
        nonlocal count
        progress("writing weights", count / len(used))
        count += 1
        return used[name].read(checkpoint)

    write_weights(path, {name: each.spec for name, each in used.items()}, read)
    progress("writing weights", 1.0)
    places = {
        name: ByteRange(entry.offset, entry.length) for name, entry in read_layout(path).items()
    }
    return places, describe_file(path).sha256


def _assemble(
    draft: _Draft,
    used: Mapping[str, Parameter],
    places: Mapping[str, ByteRange],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> ModelProto:
    read = {name for node in draft.nodes for name in node_inputs(node)}
    initializers = [
        numpy_helper.from_array(draft.constants[name], name)
        for name in sorted(read & draft.constants.keys())
    ]
    initializers += [
        external_tensor(name, np.dtype(its.spec.dtype), its.spec.shape, places[name])
        for name, its in used.items()
    ]
    return make_model(draft.nodes, inputs, outputs, initializers, OPSETS)
