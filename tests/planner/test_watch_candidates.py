"""What could be done with the devices that are left, by the cost model."""

from pathlib import Path

import pytest

from contract.command import Examination
from contract.plan import Plan
from contract.prediction import DevicePrediction, EdgePrediction, Prediction, SegmentCosts
from contract.profile import BatchTimings
from planner.cost_model import REFERENCE_RELAY, receive_ms, send_ms
from planner.devices.profile_cache import KindTimings, ProfileCache
from planner.devices.profile_report import timings_key
from planner.problem import StageChoice
from planner.watch.candidates import as_it_runs, moved, on_devices, rate_of
from planner.watch.costs import site_of_cache, site_of_plan, with_memory
from tests.pipeline.fakes import place_on
from tests.planner.problems import device, problem
from tests.tiny import make_tiny_plan

EDGES = (10, 10, 10, 10)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three stages of one segment each."""
    return make_tiny_plan(tmp_path, devices=("a", "b", "c"))


def same(*names: str, ms: float = 1.0) -> list:
    return [device(name, (ms, ms, ms)) for name in names]


def test_the_lost_stage_goes_to_the_spare_that_suits_best(plan: Plan) -> None:
    given = problem([*same("a", "c"), *same("slow", ms=5.0), *same("fast", ms=2.0)], EDGES)
    stages = moved(given, plan, frozenset("ac"), ["slow", "fast"])
    assert stages == (
        StageChoice(0, 1, ("a",)),
        StageChoice(1, 2, ("fast",)),
        StageChoice(2, 3, ("c",)),
    )
    assert rate_of(given, stages) == pytest.approx(500.0)


def test_two_lost_stages_get_a_spare_each(plan: Plan) -> None:
    given = problem([*same("a"), device("x", (9, 1, 9)), device("y", (9, 9, 1))], EDGES)
    stages = moved(given, plan, frozenset("a"), ["x", "y"])
    assert stages is not None
    assert [stage.devices for stage in stages] == [("a",), ("x",), ("y",)]


def test_a_spare_that_is_too_small_is_none(plan: Plan) -> None:
    given = problem(
        [*same("a", "c"), device("small", (1, 1, 1), memory_bytes=10)],
        EDGES,
        weight_bytes=(100, 100, 100),
    )
    assert moved(given, plan, frozenset("ac"), ["small"]) is None


def test_too_few_spares_are_none(plan: Plan) -> None:
    assert moved(problem(same("a", "x"), EDGES), plan, frozenset("a"), ["x"]) is None


def test_a_stage_without_a_device_has_no_rate(plan: Plan) -> None:
    given = problem(same("a", "b", "c"), EDGES)
    assert rate_of(given, as_it_runs(plan, frozenset("ac"))) == 0.0
    assert rate_of(given, as_it_runs(plan, frozenset("abc"))) == pytest.approx(1000.0)


def test_replicas_that_are_left_count(plan: Plan) -> None:
    twice = place_on(plan, ["a", ["b", "d"], "c"], "default")
    stages = as_it_runs(twice, frozenset("abc"))
    assert [stage.devices for stage in stages] == [("a",), ("b",), ("c",)]


def test_cuts_that_do_not_fit_the_devices_are_none() -> None:
    assert on_devices(problem(same("a", "b"), EDGES), (0, 1, 2, 3)) is None
    found = on_devices(problem(same("a", "b"), EDGES), (0, 2, 3))
    assert found is not None
    assert [(s.first, s.end) for s in found.stages] == [(0, 2), (2, 3)]


# Costs without measuring


def predicted(plan: Plan) -> Plan:
    """With segments of 2, 2 and 4 ms on the fastest device; b takes twice as long."""

    def one(name: str, index: int, compute_ms: float) -> DevicePrediction:
        edge_bytes = [plan.edge_bytes(e, plan.batch_size) for e in (index, index + 1)]
        relay_ms = receive_ms(edge_bytes[0]) + send_ms(edge_bytes[1])
        return DevicePrediction(
            device=name,
            stage_index=index,
            share=1.0,
            compute_ms=compute_ms,
            relay_ms=relay_ms * compute_ms / (2, 2, 4)[index],
            transfer_ms=max(edge_bytes) / 1e6 * 1e3,  # at 1 MB/s
            utilisation=1.0,
            memory_bytes=1,
            memory_limit_bytes=500 if name == "b" else None,
        )

    edges = tuple(
        EdgePrediction(edge=e, codec="float32", bytes_per_batch=1, transfer_ms=0, broker_ms=0)
        for e in range(4)
    )
    prediction = Prediction(
        images_per_s=1,
        latency_ms=1,
        loaded_latency_ms=1,
        window=1,
        bottleneck="",
        bound_images_per_s=1,
        broker_bytes_per_image=1,
        devices=(one("a", 0, 2.0), one("b", 1, 4.0), one("c", 2, 4.0)),
        edges=edges,
        based_on="a test",
    )
    segments = tuple(
        SegmentCosts(cut="", ms=ms, weight_bytes=0, output_bytes=0) for ms in (2.0, 2.0, 4.0)
    )
    return plan.model_copy(update={"prediction": prediction, "segments": segments})


def test_devices_are_as_slow_as_the_plan_took_them_to_be(plan: Plan) -> None:
    site = site_of_plan(predicted(plan), (2.0, 2.0, 4.0), ["a", "b", "new"])
    a, b, new = site.devices
    assert a.segment_ms == (2.0, 2.0, 4.0)
    assert b.segment_ms == new.segment_ms == (4.0, 4.0, 8.0)  # nobody knows: as the slowest
    assert b.memory_bytes == 500
    assert a.memory_bytes is None
    assert a.relay.message_ms == pytest.approx(REFERENCE_RELAY.message_ms)
    assert b.relay.message_ms == pytest.approx(2 * REFERENCE_RELAY.message_ms)
    assert a.link.up_bytes_per_s == pytest.approx(1e6)
    assert site.are_known


def test_without_a_prediction_the_speeds_of_replicas_count(plan: Plan) -> None:
    site = site_of_plan(plan, (1.0, 1.0, 1.0), ["a", "z"])
    assert [device.segment_ms for device in site.devices] == [(1.0, 1.0, 1.0)] * 2


def examination(available: int, limit: int | None = None, used: int | None = None) -> Examination:
    return Examination(
        request_id="0" * 16,
        unix_time_s=0.0,
        shardline_version="",
        machine="aarch64",
        processor=None,
        board="Raspberry Pi 4",
        kernel="",
        kernel_command_line="",
        cores=4,
        engine="onnxruntime",
        engine_version="1",
        memory_total_bytes=1,
        memory_available_bytes=available,
        memory_limit_bytes=limit,
        memory_used_bytes=used,
        memory_controller=True,
        cache_dir="",
        cache_total_bytes=None,
        cache_free_bytes=None,
        cache_writable=True,
        temperature_celsius=None,
        throttled=None,
    )


def test_a_device_has_the_memory_that_it_says_and_that_of_the_shard_that_it_holds(
    plan: Plan,
) -> None:
    said = {"a": examination(1000), "z": examination(1000), "b": examination(900, 700, 100)}
    site = with_memory(site_of_plan(plan, (1.0, 1.0, 1.0), ["a", "b", "c", "z"]), plan, said)
    a, b, c, z = site.devices
    assert a.memory_bytes == 1000 + 80_000_000 + 2 * plan.stages[0].weight_bytes
    assert b.memory_bytes == 700  # a container's limit is the limit
    assert c.memory_bytes is None  # it did not answer
    assert z.memory_bytes == 1000


def kept(plan: Plan, said: Examination, segments: int = 3) -> KindTimings:
    return KindTimings(
        key=timings_key(plan.model.digest, said, plan.batch_size),
        measured_on="another",
        timings=BatchTimings(
            batch_size=plan.batch_size, segment_ms=(7.0,) * segments, whole_ms=7.0 * segments
        ),
        base_bytes=1,
        packing_factor=1,
        unpacked_factor=None,
        activation_bytes=None,
        sustained_share=None,
        temperature_before_celsius=None,
        temperature_after_celsius=None,
        throttled=None,
        busy=False,
        time_unix_s=0.0,
    )


def test_times_that_were_measured_on_all_kinds_go_before_the_plan_s(
    plan: Plan, tmp_path: Path
) -> None:
    cache, said = ProfileCache(tmp_path / "cache"), examination(1000)
    assert site_of_cache(cache, plan, 3, {"a": said}) is None
    cache.put(kept(plan, said))
    site = site_of_cache(cache, plan, 3, {"a": said, "b": said})
    assert site is not None
    assert [device.name for device in site.devices] == ["a", "b"]
    assert site.devices[0].segment_ms[0] >= 7.0
    assert site.devices[0].memory_bytes is None
    # Nothing where one is unknown, or where the times are of other segments.
    assert site_of_cache(cache, plan, 3, {"a": said, "b": None}) is None
    assert site_of_cache(cache, plan, 4, {"a": said}) is None
