"""Blocks cover the model and fit; answers of blocks become times of segments and memory figures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.command import MAX_COMMAND_BYTES, GeneratedWeight, Measure, Timings
from contract.plan import ShardFile
from planner.devices.profile_blocks import (
    AGENT_BYTES,
    BlockAnswer,
    choose_blocks,
    combine,
    make_block,
    memory_figures,
    weight_limit,
    weight_scale,
)
from shards.session import open_session, run_session
from stage.measure import make_inputs, run_for, sustained_share, write_weights
from stage.measure_job import Job, read_outcome
from tests.planner.conftest import Cached

MB = 1_000_000


@pytest.fixture
def plain(small: "object") -> Cached:
    return small("Plain")  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("limit", [1, 1000, 2000, 5000, 10**9])
def test_blocks_cover_all_segments_and_stay_below_the_limit(plain: Cached, limit: int) -> None:
    graph = plain.graph
    ranges = choose_blocks(graph, limit)
    assert [i for first, end in ranges for i in range(first, end)] == list(
        range(graph.num_segments)
    )
    for first, end in ranges:
        weights = make_block(graph, first, end).weight_bytes
        assert weights <= limit or end == first + 1
    assert (len(ranges) == 1) == (limit >= graph.model.weight_bytes)


def test_a_device_with_more_memory_measures_more_at_once() -> None:
    assert weight_limit(512 * MB) == 98 * MB
    assert weight_limit(8000 * MB) == 1970 * MB
    assert weight_limit(100 * MB) == 1


def test_a_block_runs_on_made_up_weights_and_gives_finite_answers(
    plain: Cached, tmp_path: Path
) -> None:
    for first, end in ((0, plain.graph.num_segments), (2, 5)):
        folder = tmp_path / str(first)
        folder.mkdir()
        block = make_block(plain.graph, first, end)
        (folder / "graph.onnx").write_bytes(block.graph)
        write_weights(folder / "weights.safetensors", block.weights, block.weights_size_bytes)
        session = open_session(folder / "graph.onnx", 1)
        outputs = run_session(session, make_inputs(block.inputs, 2))
        for array in outputs.values():
            assert array.shape[0] == 2
            assert np.isfinite(array).all()
            assert 1e-3 < np.abs(array).max() < 1e4
        assert len(run_for(session, make_inputs(block.inputs, 1), 0.05)) > 2


def test_no_two_made_up_weights_are_equal(tmp_path: Path) -> None:
    """Equal ones would be packed once, and stay in the processor's cache."""
    length = 4 * (1 << 20) + 400  # more than the block of random numbers
    weights = tuple(
        GeneratedWeight(offset=i * (length + 64), length=length, dtype="float32", scale=0.5)
        for i in range(2)
    )
    write_weights(tmp_path / "w", weights, 2 * (length + 64))
    data = (tmp_path / "w").read_bytes()
    assert len(data) == 2 * (length + 64)
    first, second = (np.frombuffer(data, np.float32, length // 4, w.offset) for w in weights)
    assert not np.array_equal(first, second)
    for array in (first, second):
        assert array.std() == pytest.approx(0.5, rel=0.01)
        assert abs(array.mean()) < 0.01
    assert data[length : length + 64] == bytes(64)


def test_the_scale_keeps_activations_as_large_as_they_were() -> None:
    assert weight_scale((64, 3, 3, 3)) == pytest.approx((2 / 27) ** 0.5, abs=1e-6)
    assert weight_scale((100, 50)) == weight_scale((50, 100)) == pytest.approx(0.02**0.5, abs=1e-6)
    assert weight_scale((64,)) == 0.1


def timings(**change: object) -> Timings:
    good: dict[str, object] = {
        "whole_ms": 10.0,
        "kernels": (),
        "unpacked_whole_ms": 20.0,
        "base_bytes": 70 * MB,
        "load_peak_bytes": 100 * MB,
        "peak_bytes": 100 * MB,
        "unpacked_peak_bytes": 90 * MB,
        "sustained_share": None,
    }
    return Timings.model_validate({**good, **change})


def test_kernel_times_of_blocks_add_up_to_the_measured_times(plain: Cached) -> None:
    graph = plain.graph
    middle = graph.num_segments // 2
    last = graph.body[-1].output[0]
    answers = [
        BlockAnswer(0, middle, 10, timings(kernels=((graph.cuts[1].name, 3.0),))),
        BlockAnswer(middle, graph.num_segments, 10, timings(whole_ms=5.0, kernels=((last, 1.0),))),
    ]
    combined = combine(graph, 1, answers)
    assert combined.whole_ms == 15.0
    assert combined.segment_ms[1] == 10.0
    assert combined.segment_ms[-1] == 5.0
    assert sum(combined.segment_ms) == 15.0
    assert combined.unpacked_ms is not None
    assert combined.unpacked_ms[1] == 20.0
    assert combined.unpacked_whole_ms == 40.0
    nameless = [BlockAnswer(0, graph.num_segments, 10, timings(kernels=(("?", 1.0),)))]
    assert sum(combine(graph, 1, nameless).segment_ms) == pytest.approx(10.0)
    partly = [
        answers[0],
        BlockAnswer(middle, graph.num_segments, 1, timings(unpacked_whole_ms=None)),
    ]
    assert combine(graph, 1, partly).unpacked_ms is None


def test_memory_is_told_by_the_heaviest_block_if_it_is_heavy_enough() -> None:
    light = BlockAnswer(0, 1, MB, timings())
    assert memory_figures([light]).packing_factor == 2.0
    assert memory_figures([light]).unpacked_factor is None
    assert memory_figures([light]).base_bytes == 70 * MB + AGENT_BYTES
    heavy = BlockAnswer(1, 2, 20 * MB, timings(peak_bytes=107 * MB))
    figures = memory_figures([light, heavy])
    assert (figures.packing_factor, figures.unpacked_factor) == (1.5, 1.0)
    assert figures.activation_bytes == 7 * MB


def test_speed_that_lasts_is_compared_with_speed_at_first() -> None:
    steady = [(i * 0.1, 100.0) for i in range(300)]
    assert sustained_share(steady) == 1.0
    throttled = [(i * 0.1, 100.0 if i < 100 else 200.0) for i in range(300)]
    assert sustained_share(throttled) == 0.5
    assert sustained_share(steady[:2]) is None


def test_the_process_that_measures_answers_and_says_what_went_wrong(
    plain: Cached, tmp_path: Path
) -> None:
    block = make_block(plain.graph, 0, plain.graph.num_segments)
    (tmp_path / "graph.onnx").write_bytes(block.graph)
    measure = Measure(
        request_id="0" * 16,
        graph=ShardFile(sha256="ab" * 32, size_bytes=len(block.graph)),
        weights_size_bytes=block.weights_size_bytes,
        weights=block.weights,
        inputs=block.inputs,
        batch_size=1,
        budget_s=0.05,
        sustained_s=0.1,
    )
    assert len(measure.model_dump_json()) < MAX_COMMAND_BYTES
    job = Job(folder=str(tmp_path), threads=1, prepack=True, measure=measure)
    done = subprocess.run(
        [sys.executable, "-m", "stage.measure"],
        input=job.model_dump_json().encode(),
        capture_output=True,
        timeout=60,
    )
    outcome = read_outcome(done.returncode, done.stdout, done.stderr)
    assert outcome.whole_ms > 0
    assert outcome.kernels
    assert 10 * MB < outcome.base_bytes < outcome.load_peak_bytes <= outcome.peak_bytes < 500 * MB
    assert outcome.sustained_share is not None
    assert b"torch" not in done.stderr


@pytest.mark.parametrize(
    ("returncode", "output", "said"),
    [
        (-9, b"", "killed, most likely for want of memory"),
        (-11, b"", r"crashed with signal 11 \(terrible\)"),
        (1, b"half a docu", "ended with 1"),
        (0, json.dumps({"error": "no such operator"}).encode(), "no such operator"),
    ],
)
def test_an_end_without_an_answer_is_explained(returncode: int, output: bytes, said: str) -> None:
    from contract.errors import EngineError

    with pytest.raises(EngineError, match=said):
        read_outcome(returncode, output, b"first\nterrible\n")
