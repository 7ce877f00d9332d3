"""Finds where a graph may be cut, and the segments between. Pure: looks at the graph alone.

A cut is legal where exactly one activation is live. What follows from weights, constants and the
batch size alone is *derived*: it is not counted, each stage that needs it computes it again. No
rule here knows any architecture; the published per-architecture rules are tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnx import NodeProto

from contract.tensor_spec import BATCH, TOKENS, TensorSpec
from planner.batch_root import ROOTS
from planner.canonical import CanonicalModel
from planner.flops import node_flops
from planner.language.state import is_attention
from planner.onnx_graph import node_inputs

CUT_DTYPES = ("float32", "float16", "float64")


@dataclass(frozen=True)
class CutPoint:
    """A tensor where the graph may be cut. ``position``: the nodes of the body before it.

    ``scope`` is the dotted name of the original model's module that computes the tensor, if known.
    """

    name: str
    spec: TensorSpec
    position: int
    scope: str = ""


@dataclass(frozen=True)
class Segment:
    """What lies between neighbouring cut points: the half-open range of body nodes.

    ``output_bytes_per_image`` counts what leaves it, the model's outputs for the last one.
    """

    index: int
    first_node: int
    end_node: int
    weight_names: tuple[str, ...]
    weight_bytes: int
    flops_per_image: int
    output_bytes_per_image: int


@dataclass(frozen=True)
class SegmentedGraph:
    """A canonical model with its cut points, in graph order, and ``len(cuts) + 1`` segments.

    ``body`` are the nodes that compute activations, ``derived`` the producers, by tensor name, of
    all that is computed again where it is needed. Segment i ends at cut i.
    """

    model: CanonicalModel
    body: tuple[NodeProto, ...]
    derived: Mapping[str, NodeProto]
    cuts: tuple[CutPoint, ...]
    segments: tuple[Segment, ...]

    @property
    def num_segments(self) -> int:
        """One more than there are cut points."""
        return len(self.segments)

    @property
    def cut_names(self) -> tuple[str, ...]:
        """What a person types to cut there."""
        return tuple(cut.name for cut in self.cuts)


def segment_graph(model: CanonicalModel) -> SegmentedGraph:
    """Find all cut points of ``model`` and describe the segments between."""
    body, derived = split_derived(model.graph.graph.node, model.inputs[0].name)
    specs = {
        name: spec
        for node in body
        for name in node.output
        if name in model.tensors and (spec := model.tensors[name].spec(name)) is not None
    }
    shapes = model.shapes_per_image()
    output_names = [spec.name for spec in model.outputs]
    cuts = tuple(
        CutPoint(name, specs[name], position, model.scopes.get(name, ""))
        for position, name in single_live_tensors(body, model.inputs[0].name, output_names)
        if position > model.prefix_nodes and name in specs and _may_travel(specs[name])
    )
    if model.cache is not None:
        cuts = between_blocks(cuts, body)
    bounds = [0, *(cut.position for cut in cuts), len(body)]
    output_bytes = [cut.spec.bytes_per_image for cut in cuts]
    output_bytes.append(sum(spec.bytes_per_image for spec in model.outputs))
    segments = []
    for index, (first, end) in enumerate(pairwise(bounds)):
        nodes = body[first:end]
        weights = sorted(model.weights.keys() & needed_constants(nodes, derived))
        segments.append(
            Segment(
                index=index,
                first_node=first,
                end_node=end,
                weight_names=tuple(weights),
                weight_bytes=sum(model.weights[name].nbytes for name in weights),
                flops_per_image=sum(node_flops(node, shapes) for node in nodes),
                output_bytes_per_image=output_bytes[index],
            )
        )
    return SegmentedGraph(model, tuple(body), derived, cuts, tuple(segments))


def between_blocks(cuts: Sequence[CutPoint], body: Sequence[NodeProto]) -> tuple[CutPoint, ...]:
    """Of a language model's cut points the last before each attention but the first.

    There a block begins: so every stage has a layer of its own, with its cache, and what travels is
    one hidden state, (batch, tokens, hidden).
    """
    attentions = [at for at, node in enumerate(body) if is_attention(node)]
    kept = []
    for before, after in pairwise(attentions):
        between = [
            cut
            for cut in cuts
            if before < cut.position <= after and cut.spec.shape[:2] == (BATCH, TOKENS)
        ]
        if between and len(between[-1].spec.shape) == 3 and between[-1].spec.dtype == "float32":
            kept.append(between[-1])
    return tuple(kept)


def edge_bytes(graph: SegmentedGraph, batch_size: int) -> list[int]:
    """Bytes of a batch before the first segment, at every cut, and after the last segment."""
    entering = sum(spec.bytes_per_image for spec in graph.model.inputs)
    leaving = [segment.output_bytes_per_image for segment in graph.segments]
    return [batch_size * size for size in (entering, *leaving)]


def split_derived(
    nodes: Sequence[NodeProto], input_name: str
) -> tuple[list[NodeProto], dict[str, NodeProto]]:
    """Tell the nodes that compute activations from those that follow from constants and the root.

    Returns:
        The body in graph order, and for each derived tensor the node that produces it.
    """
    active = {input_name}
    body: list[NodeProto] = []
    derived: dict[str, NodeProto] = {}
    for node in nodes:
        if not active.isdisjoint(node_inputs(node)) and set(ROOTS).isdisjoint(node.output):
            body.append(node)
            active.update(node.output)
        else:
            derived.update(dict.fromkeys(node.output, node))
    return body, derived


def single_live_tensors(
    body: Sequence[NodeProto], input_name: str, output_names: Sequence[str]
) -> list[tuple[int, str]]:
    """Every position, counted in body nodes before it, where exactly one activation is live.

    The graph's input counts until its last use, its outputs from where they are made. The answer
    does not depend on which topological order the nodes stand in: were a node independent of the
    single live tensor, the input that it reads would be live as well.
    """
    last_use: dict[str, int] = {}
    for position, node in enumerate(body, start=1):
        last_use.update(dict.fromkeys(node_inputs(node), position))
    last_use.update(dict.fromkeys(output_names, len(body) + 1))
    live = {input_name}
    found = []
    for position, node in enumerate(body[:-1], start=1):
        live.update(node.output)
        live = {name for name in live if last_use.get(name, 0) > position}
        if len(live) == 1:
            found.append((position, min(live)))
    return found


def needed_constants(nodes: Sequence[NodeProto], derived: Mapping[str, NodeProto]) -> set[str]:
    """Names of all derived tensors that ``nodes`` need, at any remove, and of what those need.

    Holds the names of activations too: a caller intersects it with what it is interested in.
    """
    names: set[str] = set()
    pending = [name for node in nodes for name in node_inputs(node)]
    while pending:
        name = pending.pop()
        if name not in names:
            names.add(name)
            if name in derived and name not in ROOTS:
                pending.extend(node_inputs(derived[name]))
    return names


def _may_travel(spec: TensorSpec) -> bool:
    return spec.dtype in CUT_DTYPES and spec.shape[:1] == (BATCH,) and BATCH not in spec.shape[1:]
