"""Takes a stage out of a segmented graph: its nodes, its weights, the tensors at both ends.

The slice runs backward from the stage's output to the cut where it begins. What is derived from
constants and the batch size is copied into each stage that needs it, with the root reading the
batch from that stage's own input.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnx import ModelProto, NodeProto, TensorProto

from contract.decoder import CacheSpec, Decoding
from contract.errors import PartitionError
from contract.tensor_spec import TensorSpec
from planner.batch_root import ROOT, TOKENS_ROOT, root_node, tokens_root_node
from planner.graph import SegmentedGraph, needed_constants
from planner.language.mapped import MappedWeights
from planner.language.state import cache_of, number_caches, state_inputs, state_outputs
from planner.onnx_graph import Array, external_tensor, make_model, read_opsets
from shards.writer import ByteRange


@dataclass(frozen=True)
class StageGraph:
    """One stage, still without a file: segments ``first_segment`` to ``end_segment`` (half-open).

    ``weights`` are mapped from the canonical model, nothing is copied.
    """

    first_segment: int
    end_segment: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[NodeProto, ...]
    inline: tuple[TensorProto, ...]
    weights: Mapping[str, Array]
    opsets: Mapping[str, int]
    flops_per_image: int
    cache: CacheSpec | None = None
    decoding: Decoding | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stage's weights file without its header."""
        return sum(array.nbytes for array in self.weights.values())

    def model(self, places: Mapping[str, ByteRange]) -> ModelProto:
        """The graph, with its weights where ``places`` says in the weights file beside it."""
        external = [
            external_tensor(name, array.dtype, array.shape, places[name])
            for name, array in self.weights.items()
        ]
        inputs, outputs = self.inputs, self.outputs
        if self.cache is not None and self.decoding is not None:
            inputs = (*inputs, *state_inputs(self.cache, self.decoding))
            outputs = (*outputs, *state_outputs(self.cache, self.decoding))
        return make_model(self.nodes, inputs, outputs, [*self.inline, *external], self.opsets)


def split_graph(graph: SegmentedGraph, boundaries: Sequence[int]) -> list[StageGraph]:
    """The stages between ``boundaries``: segment indices from 0 to the number of segments."""
    return [take_stage(graph, first, end) for first, end in pairwise(boundaries)]


def take_stage(graph: SegmentedGraph, first_segment: int, end_segment: int) -> StageGraph:
    """The stage of a half-open range of segments."""
    model = graph.model
    inputs = (graph.cuts[first_segment - 1].spec,) if first_segment else model.inputs
    last = end_segment == graph.num_segments
    outputs = model.outputs if last else (graph.cuts[end_segment - 1].spec,)
    segments = graph.segments[first_segment:end_segment]
    body = graph.body[segments[0].first_node : segments[-1].end_node]
    needed = needed_constants(body, graph.derived)
    roots = {
        ROOT: root_node(inputs[0].name),
        TOKENS_ROOT: tokens_root_node(inputs[0].name),
    }
    derived = [
        roots.get(node.output[0], node)
        for node in model.graph.graph.node
        if node.output[0] in graph.derived and needed.intersection(node.output)
    ]
    names = sorted(needed & model.weights.keys())
    weights = (
        model.weights.only(names)
        if isinstance(model.weights, MappedWeights)
        else {name: model.weights[name] for name in names}
    )
    cache = cache_of(model, body)
    return StageGraph(
        first_segment=first_segment,
        end_segment=end_segment,
        inputs=inputs,
        outputs=outputs,
        nodes=(*derived, *(body if cache is None else number_caches(body))),
        inline=tuple(
            tensor
            for tensor in model.graph.graph.initializer
            if tensor.name in needed and tensor.name not in weights
        ),
        weights=weights,
        opsets=read_opsets(model.graph),
        flops_per_image=sum(segment.flops_per_image for segment in segments),
        cache=cache,
        decoding=model.decoding,
    )


def boundaries_of(graph: SegmentedGraph, cut_names: Sequence[str]) -> list[int]:
    """Segment boundaries for cuts by name, in any order.

    A name is that of a cut point's tensor, or of a module of the original model, which means the
    last cut point inside that module.

    Raises:
        PartitionError: a name is no cut point, or two names are the same one.
    """
    chosen: dict[int, str] = {}
    for name in cut_names:
        boundary = _find_cut(graph, name) + 1
        if boundary in chosen:
            raise PartitionError(
                f"{graph.model.info.name}: cuts {chosen[boundary]!r} and {name!r} are the same cut "
                "point; name each one once"
            )
        chosen[boundary] = name
    return [0, *sorted(chosen), graph.num_segments]


def _find_cut(graph: SegmentedGraph, name: str) -> int:
    """Index of the cut point called ``name``."""
    if name in graph.cut_names:
        return graph.cut_names.index(name)
    inside = [
        index
        for index, cut in enumerate(graph.cuts)
        if name and f"{cut.scope}.".startswith(f"{name}.")
    ]
    if inside:
        return inside[-1]
    known = dict.fromkeys([*graph.cut_names, *(cut.scope for cut in graph.cuts if cut.scope)])
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise PartitionError(
        f"{graph.model.info.name}: {name!r} is not a cut point; {hint}--list-cuts prints all "
        f"{len(graph.cuts)}"
    )


def find_tied_weights(stages: Sequence[StageGraph]) -> tuple[str, ...]:
    """Names of the weights that more than one stage holds."""
    counts = Counter(name for stage in stages for name in stage.weights)
    return tuple(sorted(name for name, count in counts.items() if count > 1))
