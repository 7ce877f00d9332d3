"""From a model's graph, what was measured, and the devices to the numbers of a decision."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from contract.codec import encoded_bytes
from contract.decoder import IDS_SPEC, RESULT_SPECS, SAMPLING_SPEC, CacheSpec
from planner.activations import peak_activation_bytes
from planner.cost_model import REFERENCE_RELAY
from planner.graph import SegmentedGraph, edge_bytes
from planner.language.state import cache_of, query_heads
from planner.problem import BrokerCosts, ClientCosts, DeviceCosts, Problem

LEAST_SEGMENT_MS = 1e-4


@dataclass(frozen=True)
class Site:
    """Where a plan is to run. ``based_on`` says in a sentence where the figures come from.

    ``are_known`` tells devices that have names from stand-ins, which only help to cut.
    """

    devices: tuple[DeviceCosts, ...]
    based_on: str
    broker: BrokerCosts = field(default_factory=BrokerCosts)
    client: ClientCosts = field(default_factory=lambda: ClientCosts(REFERENCE_RELAY))
    are_known: bool = True


def stand_ins(segment_ms: Sequence[float], count: int) -> Site:
    """``count`` devices like this machine, without limits: what a plan is cut for when no device is
    known."""
    return Site(
        devices=tuple(
            DeviceCosts(f"device-{index}", tuple(segment_ms), REFERENCE_RELAY)
            for index in range(count)
        ),
        based_on="this machine's times, without links and memory limits",
        are_known=False,
    )


def formulate(graph: SegmentedGraph, site: Site, batch_size: int) -> Problem:
    """The problem of placing ``graph`` on ``site``, all activations as they are."""
    if graph.model.decoding is not None:
        return formulate_decoder(graph, site, batch_size)
    edges = tuple(edge_bytes(graph, batch_size))
    return Problem(
        devices=tuple(_measurable(device) for device in site.devices),
        weight_bytes=tuple(segment.weight_bytes for segment in graph.segments),
        activation_bytes=tuple(peak_activation_bytes(graph, batch_size)),
        edge_bytes=edges,
        edge_cut_bytes=edges,
        batch_size=batch_size,
        broker=site.broker,
        client=site.client,
        shared_bytes=shared_bytes(graph),
    )


def formulate_decoder(graph: SegmentedGraph, site: Site, batch_size: int) -> Problem:
    """The problem of a language model: a batch is one decoding step, a token for each sequence.

    Memory is for the worst: full caches, and activations, scores of attention and messages of whole
    chunks of a prompt.
    """
    model = graph.model
    decoding, cache = model.decoding, model.cache
    assert decoding is not None
    assert cache is not None
    steps, chunks = (edge_message_bytes(graph, batch_size, n) for n in (1, decoding.chunk_tokens))
    peaks = peak_activation_bytes(graph, batch_size, decoding.chunk_tokens)
    problem = Problem(
        devices=tuple(_measurable(device) for device in site.devices),
        weight_bytes=tuple(segment.weight_bytes for segment in graph.segments),
        activation_bytes=(),
        edge_bytes=tuple(steps),
        edge_cut_bytes=tuple(steps),
        batch_size=batch_size,
        broker=site.broker,
        client=site.client,
        shared_bytes=shared_bytes(graph),
        state_bytes=tuple(
            cache_of_segment.bytes_of(decoding) for cache_of_segment in segment_caches(graph)
        ),
        state_words=f"{decoding.sequences} sequences of {decoding.context_tokens:,} tokens",
        unit="token",
        batches_in_flight=max(1, decoding.sequences // batch_size)
        if site.are_known
        else None,  # stand-ins only help to cut: into stages of equal times
    )
    # Messages of a prompt's chunks wait at both ends of a stage, beside those of steps.
    waiting = [
        problem.window_batches * (chunks[index] + chunks[index + 1])
        for index in range(len(graph.segments))
    ]
    # Attention's scores are made inside of the operator, where no tensor of the graph shows them.
    scores = [
        decoding.score_bytes(query_heads(graph.body[part.first_node : part.end_node]), batch_size)
        for part in graph.segments
    ]
    activations = tuple(map(sum, zip(peaks, waiting, scores, strict=True)))
    return replace(problem, activation_bytes=activations)


def shared_bytes(graph: SegmentedGraph) -> int:
    """Bytes of the weights that the first segment shares with the last, such as tied embeddings."""
    if graph.num_segments == 1:
        return 0  # a segment's own weights are counted once
    shared = {*graph.segments[0].weight_names} & {*graph.segments[-1].weight_names}
    return sum(graph.model.weights[name].nbytes for name in shared)


def edge_message_bytes(graph: SegmentedGraph, batch_size: int, tokens: int) -> list[int]:
    """Bytes of a message before each block, and of results: see contract/decoder.py."""
    inputs = encoded_bytes("float32", (IDS_SPEC, SAMPLING_SPEC), batch_size, tokens)
    hidden = [cut.spec.bytes_of(batch_size, tokens) for cut in graph.cuts]
    results = encoded_bytes("float32", RESULT_SPECS, batch_size, 1)
    return [inputs, *(inputs + size for size in hidden), results]


def segment_caches(graph: SegmentedGraph) -> list[CacheSpec]:
    """The caches of each segment of a language model."""
    found = []
    for segment in graph.segments:
        cache = cache_of(graph.model, graph.body[segment.first_node : segment.end_node])
        assert cache is not None
        found.append(cache)
    return found


def _measurable(device: DeviceCosts) -> DeviceCosts:
    """A segment whose work was fused into a neighbour's takes next to nothing, but not nothing: a
    stage of such segments must have times that can be corrected."""

    def floored(times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(max(ms, LEAST_SEGMENT_MS) for ms in times)

    unpacked = None if device.unpacked_ms is None else floored(device.unpacked_ms)
    return replace(device, segment_ms=floored(device.segment_ms), unpacked_ms=unpacked)
