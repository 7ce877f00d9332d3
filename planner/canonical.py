"""Brings an imported model into the one form that everything after works on.

BatchNorm folded, preprocessing in front, shapes computed from one root, nothing dead, nothing
twice, names kept, weights in a safetensors file beside the graph. The same model and weights give
the same bytes, so the digest, and with it a plan's id, is stable.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from contract.decoder import CacheSpec, Decoding
from contract.errors import ModelError
from contract.plan import ImageInput, ModelInfo, TensorInput
from contract.tensor_spec import BATCH, DType, TensorSpec
from planner.batch_root import rewrite_shapes, root_node
from planner.fold import fold, read_initializers
from planner.importers.imported_model import ImportedModel
from planner.onnx_graph import (
    Array,
    external_tensor,
    is_external,
    live_nodes,
    make_model,
    node_inputs,
    read_opsets,
    read_spec,
    rename_tensors,
    to_bytes,
)
from planner.prefix import IMAGE, NORMALISED, normalisation
from planner.probe import probe
from planner.progress import Progress, silent
from planner.scratch import ScratchFolder
from shards.manifest import GRAPH_FILE, WEIGHTS_FILE
from shards.writer import ByteRange, describe_file

FOLDED = "folded.onnx"


class TensorShape(Protocol):
    """What is known of a tensor's type and dimensions."""

    @property
    def dtype(self) -> DType | None:
        """None where a message could not carry it."""

    def spec(self, name: str) -> TensorSpec | None:
        """As a spec, unless a dimension follows no rule."""

    def size(self, batch_size: int, tokens: int = 1) -> tuple[int, ...]:
        """Concrete dimensions."""


@dataclass(frozen=True)
class CanonicalModel:
    """The whole model as one shard in a scratch folder.

    ``weights`` are mapped from the shard's file, ``places`` says where in it they lie. ``tensors``
    has the shape of every activation. The preprocessing is the first ``prefix_nodes`` nodes that
    compute an activation. ``inputs`` and ``outputs`` are what messages bring and take; a language
    model has ``decoding`` and, for all its layers, ``cache``, whose inputs and outputs of the graph
    come beside (see contract/decoder.py).
    """

    info: ModelInfo
    folder: ScratchFolder
    graph: ModelProto
    weights: Mapping[str, Array]
    places: Mapping[str, ByteRange]
    tensors: Mapping[str, TensorShape]
    scopes: Mapping[str, str]
    prefix_nodes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    decoding: Decoding | None = None
    cache: CacheSpec | None = None

    @property
    def shard_path(self) -> Path:
        """The folder with ``graph.onnx`` and ``weights.safetensors`` of the whole model."""
        return self.folder.path / "whole"

    @property
    def graph_path(self) -> Path:
        """The graph of the whole model."""
        return self.shard_path / GRAPH_FILE

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(array.nbytes for array in self.weights.values())

    def shapes_per_image(self) -> dict[str, tuple[int, ...]]:
        """Dimensions of every tensor of the graph at a batch of one, weights included."""
        shapes = {name: tensor.size(1) for name, tensor in self.tensors.items()}
        shapes.update((t.name, tuple(t.dims)) for t in self.graph.graph.initializer)
        return shapes


@dataclass
class _Draft:
    """A graph in the making: nodes, and all arrays that they may use."""

    nodes: list[NodeProto]
    arrays: dict[str, Array]
    inputs: tuple[TensorSpec, ...]
    output_names: list[str]
    opsets: dict[str, int]

    def prepend(self, nodes: Sequence[NodeProto], constants: Sequence[TensorProto]) -> None:
        self.nodes[:0] = nodes
        self.arrays.update({c.name: numpy_helper.to_array(c) for c in constants})

    def used_arrays(self) -> dict[str, Array]:
        used = {name for node in self.nodes for name in node_inputs(node)}
        return {name: self.arrays[name] for name in sorted(used & self.arrays.keys())}


def canonicalise(imported: ImportedModel, progress: Progress = silent) -> CanonicalModel:
    """Make the canonical model.

    Raises:
        ModelError: onnxruntime cannot run the model, or its input or outputs have other variable
            dimensions than the batch.
        EnvironmentMissingError: there is no room for the model in the folder of temporary files.
    """
    folder = ScratchFolder()
    progress("folding constants", 0.0)
    with folder.writing(imported.folder.size_bytes):
        draft = _read_folded(imported, folder.path)
    prefix_nodes = _preprocess(draft, imported.input)
    draft.nodes = live_nodes(draft.nodes, draft.output_names)
    rename_tensors(draft.nodes, find_duplicates(draft.used_arrays()))
    shard = folder.path / "whole"
    places = folder.write_weights(shard / WEIGHTS_FILE, external_arrays(draft.used_arrays()))
    weights_sha256 = describe_file(shard / WEIGHTS_FILE).sha256
    (folder.path / FOLDED).with_suffix(".bin").unlink(missing_ok=True)

    progress("measuring shapes", 0.3)
    tensors = probe(_assemble(draft, (), places), draft.inputs[0], shard / "probe.onnx")
    outputs = tuple(_output_spec(imported.name, name, tensors) for name in draft.output_names)
    draft.nodes, constants = rewrite_shapes(draft.nodes, tensors)
    draft.prepend([root_node(draft.inputs[0].name)], constants)
    draft.nodes = live_nodes(draft.nodes, draft.output_names)

    model = _assemble(draft, outputs, places)
    graph = to_bytes(model)
    (shard / GRAPH_FILE).write_bytes(graph)
    digest = hashlib.sha256(graph + weights_sha256.encode()).hexdigest()
    arrays = read_initializers(model, shard)
    progress("measuring shapes", 1.0)
    return CanonicalModel(
        info=ModelInfo(
            name=imported.name,
            weights=imported.weights,
            digest=digest,
            input=imported.input,
            labels=imported.labels,
            labels_mean_something=imported.labels_mean_something,
        ),
        folder=folder,
        graph=model,
        weights={name: arrays[name] for name in places},
        places=places,
        tensors=tensors,
        scopes=imported.scopes,
        prefix_nodes=prefix_nodes,
        inputs=draft.inputs,
        outputs=outputs,
    )


def find_duplicates(arrays: Mapping[str, Array]) -> dict[str, str]:
    """For each weight that equals another one bit for bit, the name to use instead of its own.

    A weight that two layers share comes out of an exporter once or twice, depending on the
    exporter. Small and integer tensors are left alone.
    """
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, array in arrays.items():
        if is_external(array.dtype, array.shape):
            groups[array.dtype, array.shape].append(name)
    same: dict[str, str] = {}
    for names in groups.values():
        if len(names) < 2:
            continue
        first_by_digest: dict[bytes, str] = {}
        for name in names:
            digest = hashlib.sha256(np.ascontiguousarray(arrays[name]).data).digest()
            first = first_by_digest.setdefault(digest, name)
            if first != name:
                same[name] = first
    return same


def _read_folded(imported: ImportedModel, folder: Path) -> _Draft:
    model = fold(imported.graph_path, folder / FOLDED)
    source = read_spec(model.graph.input[0])
    if source is None or source.shape[:1] != (BATCH,):
        raise ModelError(
            f"{imported.name}: its input is expected to be (batch, …) with fixed dimensions, got "
            f"{source.describe() if source else 'unknown dimensions'}; export it again"
        )
    nodes = list(model.graph.node)
    for node in nodes:
        # Exporters leave stack traces with paths of the machine in here.
        del node.metadata_props[:]
        node.ClearField("doc_string")
        node.name = node.output[0]
    return _Draft(
        nodes,
        read_initializers(model, folder),
        (source,),
        [output.name for output in model.graph.output],
        read_opsets(model),
    )


def _preprocess(draft: _Draft, model_input: ImageInput | TensorInput) -> int:
    """Make stage 0 take uint8 pixels; returns how many nodes that needed."""
    if not isinstance(model_input, ImageInput):
        return 0
    (source,) = draft.inputs
    draft.inputs = (TensorSpec(name=IMAGE, dtype="uint8", shape=source.shape),)
    if source.dtype == "uint8":
        rename_tensors(draft.nodes, {source.name: IMAGE})
        return 0
    rename_tensors(draft.nodes, {source.name: NORMALISED})
    nodes, constants = normalisation(model_input, NORMALISED)
    draft.prepend(nodes, constants)
    return len(nodes)


def external_arrays(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Those that belong into a file of weights: the large ones of floats."""
    return {name: a for name, a in arrays.items() if is_external(a.dtype, a.shape)}


def _assemble(
    draft: _Draft, outputs: Sequence[TensorSpec], places: Mapping[str, ByteRange]
) -> ModelProto:
    initializers = [
        external_tensor(name, array.dtype, array.shape, places[name])
        if name in places
        else numpy_helper.from_array(np.asarray(array), name)
        for name, array in draft.used_arrays().items()
    ]
    return make_model(draft.nodes, draft.inputs, outputs, initializers, draft.opsets)


def _output_spec(model: str, name: str, tensors: Mapping[str, TensorShape]) -> TensorSpec:
    spec = tensors[name].spec(name) if name in tensors else None
    if spec is None or spec.shape[:1] != (BATCH,):
        raise ModelError(
            f"{model}: output {name!r} is expected to be (batch, …) with fixed dimensions; "
            "leave it out of the exported model"
        )
    return spec
