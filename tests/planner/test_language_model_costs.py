"""Caches count: in a device's memory, in the choice of stages, and in what the verdict says."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto

from contract.decoder import Decoding
from contract.errors import PartitionError
from contract.prediction import Strategy
from planner.cost_model import REFERENCE_RELAY, memory_bytes, stage_costs
from planner.formulate import Site, edge_message_bytes, formulate, stand_ins
from planner.graph import SegmentedGraph
from planner.language.profile import profile_blocks
from planner.partition import partition
from planner.problem import DeviceCosts, Problem
from planner.rules import Rules
from planner.solver.spans import make_spans, span_costs
from planner.split import take_stage
from planner.verdict import weigh
from tests.planner.decoders import exported
from tests.tiny_decoder import even_profile

DECODING = Decoding(context_tokens=200, sequences=50, chunk_tokens=16)
CACHE_OF_BLOCK = 2 * 2 * 200 * 16 * 50 * 4
"""Bytes: keys and values, 2 heads, 200 positions of 16 numbers, 50 sequences, float32."""


TIED_BYTES = 4 * 320 * 64
"""Of gpt2's embeddings, which are its head, too; llama's are not tied."""


def problem_with(
    limits: list[int | None], packing_factor: float = 1.0, kind: str = "llama"
) -> Problem:
    graph = exported(kind).graph(DECODING)
    times = even_profile(graph).segment_ms
    devices = tuple(
        DeviceCosts(
            f"pi-{index}",
            times,
            REFERENCE_RELAY,
            memory_bytes=limit,
            base_bytes=0,
            packing_factor=packing_factor,
        )
        for index, limit in enumerate(limits)
    )
    return formulate(graph, Site(devices, "made up"), 2)


def test_a_stage_needs_its_weights_and_its_caches() -> None:
    problem = problem_with([None], packing_factor=2.0)
    whole = memory_bytes(problem, problem.devices[0], 0, 4)
    without = replace(problem, state_bytes=None)
    assert problem.state_bytes == (CACHE_OF_BLOCK,) * 4
    # What is kept is not packed, and so not doubled.
    assert whole - memory_bytes(without, problem.devices[0], 0, 4) == 4 * CACHE_OF_BLOCK
    assert whole > 2 * sum(problem.weight_bytes) + 4 * CACHE_OF_BLOCK


@pytest.mark.parametrize(("kind", "tied"), [("gpt2", TIED_BYTES), ("llama", 0)])
def test_a_stage_is_charged_for_the_weights_that_its_shard_holds(kind: str, tied: int) -> None:
    problem, graph = problem_with([None], kind=kind), exported(kind).graph(DECODING)
    assert problem.shared_bytes == tied
    assert sum(problem.weight_bytes) - graph.model.weight_bytes == tied
    for first in range(4):
        for end in range(first + 1, 5):
            held = take_stage(graph, first, end).weight_bytes
            assert problem.weights(first, end) == held
            twice, once = (
                memory_bytes(
                    problem, replace(problem.devices[0], packing_factor=2.0), first, end, p
                )
                for p in (True, False)
            )
            assert twice - once == held


def test_a_model_of_one_segment_shares_nothing_with_itself() -> None:
    graph = exported("gpt2", n_layer=1).graph(DECODING)
    problem = formulate(graph, stand_ins((1.0,), 1), 1)
    assert problem.num_segments == 1
    assert problem.weights(0, 1) == graph.model.weight_bytes == sum(problem.weight_bytes)


def test_a_device_that_holds_a_tied_model_is_given_all_of_it() -> None:
    unlimited = problem_with([None], kind="gpt2")
    need = memory_bytes(unlimited, unlimited.devices[0], 0, 4)
    enough, short = (problem_with([limit] * 2, kind="gpt2") for limit in (need, need - 1))
    strategies: tuple[Strategy, ...] = ("single", "replicas")
    for strategy in strategies:
        assert len(partition(enough, Rules(strategy=strategy)).stages) == 1
        with pytest.raises(PartitionError):
            partition(short, Rules(strategy=strategy))
    weighed = weigh(short, partial(partition, short), Rules(), ("float32",) * 5, "made up")
    held = exported("gpt2").graph(DECODING).model.weight_bytes
    assert f"the whole model needs {-(-held // 10**6)} MB for weights" in weighed.verdict.reason


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_the_solver_holds_for_possible_is_what_the_cost_model_holds_for_possible(
    kind: str,
) -> None:
    unlimited = problem_with([None], kind=kind)
    needs = [
        memory_bytes(unlimited, unlimited.devices[0], first, end)
        for first in range(4)
        for end in range(first + 1, 5)
    ]
    for limit in needs:
        problem = problem_with([limit], kind=kind)
        (device,) = problem.devices
        spans = make_spans(4)
        found = span_costs(problem, device, spans)
        for span in range(spans.count):
            first, end = spans.segments(span)
            possible = stage_costs(problem, device, first, end) is not None
            assert np.isfinite(found.busy_ms[span]) == possible, (limit, first, end)


def test_caches_alone_can_make_two_stages_of_one() -> None:
    whole = problem_with([None])
    need = memory_bytes(whole, whole.devices[0], 0, 4)
    enough, short = problem_with([need, need]), problem_with([need - 1, need - 1])
    single = partition(enough, Rules(strategy="single"))
    assert len(single.stages) == 1
    weighed = weigh(short, partial(partition, short), Rules(), ("float32",) * 5, "made up")
    assert weighed.verdict.chosen == "pipeline"
    weights, caches = sum(short.weight_bytes), 4 * CACHE_OF_BLOCK
    assert caches > 5 * weights
    assert (
        f"the whole model needs {-(-weights // 10**6)} MB for weights and "
        f"{-(-caches // 10**6)} MB for 50 sequences of 200 tokens" in weighed.verdict.reason
    )
    assert "it does not fit pi-0's" in weighed.verdict.reason
    assert "tokens/s" in weighed.verdict.reason


def test_messages_are_what_the_plan_says(tmp_path: Path) -> None:
    model = exported("llama")
    plan = model.plan(tmp_path, 4, DECODING)
    assert plan.decoding is not None
    sizes = edge_message_bytes(model.graph(DECODING), 2, DECODING.chunk_tokens)
    results = plan.edge_bytes(4, 2)
    assert sizes[:-1] == [plan.edge_bytes(edge, 2) for edge in range(4)]
    assert sizes[-1] <= results  # of which only one token travels


def test_a_batch_of_the_cost_model_is_one_step() -> None:
    problem = problem_with([None])
    hidden = 2 * 64 * 4
    ids, sampling = 2 * 8, 2 * 6 * 8
    assert problem.edge_bytes[0] == ids + sampling
    assert problem.edge_bytes[1:4] == (hidden + ids + sampling,) * 3
    assert problem.edge_bytes[4] == 2 * (8 + 1)


def test_as_many_batches_are_in_flight_as_sequences_fill() -> None:
    def bound(sequences: int, batch_size: int, are_known: bool = True) -> int | None:
        graph = exported("llama").graph(DECODING)
        decoding = replace_decoding(graph, sequences=sequences)
        site = replace(stand_ins(even_profile(graph).segment_ms, 2), are_known=are_known)
        return formulate(decoding, site, batch_size).batches_in_flight

    assert [bound(1, 1), bound(4, 1), bound(4, 4), bound(4, 3)] == [1, 4, 1, 1]
    assert bound(1, 1, are_known=False) is None  # stand-ins only help to cut


@pytest.mark.parametrize(
    ("chunk", "batch_size", "scores"),
    [
        (16, 1, 4 * 16 * 200),  # a chunk at the end of a full context
        (2, 32, 4 * 32 * 200),  # a step of many sequences
        (160, 4, 4 * 2 * 4 * 160 * 160),  # the first chunk of several, twice
    ],
)
def test_scores_of_attention_count_for_every_block(
    chunk: int, batch_size: int, scores: int
) -> None:
    graph = replace_decoding(exported("llama").graph(DECODING), chunk_tokens=chunk)
    headless = replace(graph, body=tuple(map(without_heads, graph.body)))
    site = stand_ins(even_profile(graph).segment_ms, 1)
    found, without = (
        formulate(each, site, batch_size).activation_bytes for each in (graph, headless)
    )
    heads = 4
    assert [a - b for a, b in zip(found, without, strict=True)] == [heads * scores] * 4


def without_heads(node: NodeProto) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    kept = [each for each in node.attribute if each.name != "num_heads"]
    del copied.attribute[:]
    copied.attribute.extend(kept)
    return copied


def replace_decoding(graph: SegmentedGraph, **changes: object) -> SegmentedGraph:
    decoding = DECODING.model_copy(update=changes)
    return replace(graph, model=replace(graph.model, decoding=decoding))


def test_blocks_are_timed_once_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.language import profile

    opened = []
    original = profile.open_block

    def counted(*args: object, **kwargs: object) -> object:
        opened.append(args)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(profile, "open_block", counted)
    found = profile_blocks(exported("llama").graph(), 1, budget_s=0.1)
    assert len(opened) == 3  # the first with the embedding, the last with the head, any between
    assert found.segment_ms[1] == found.segment_ms[2]
    assert sum(found.segment_ms) == pytest.approx(found.whole_ms)
    assert all(ms > 0 for ms in found.segment_ms)
