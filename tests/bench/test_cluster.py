"""The emulated cluster's own arithmetic, and, as root, that its cables and quotas hold."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.cluster.cgroups import ProcessorShare, Throttling, controller, period_and_quota_us
from bench.cluster.compare import row, slowest_stage
from bench.cluster.devices import EmulatedDevice, Usage, check_shares
from bench.cluster.measure import Arrival, DeviceFigures, RunFigures, device_figures, rate
from bench.cluster.network import Host, burst_bytes, inside, maker_of, network, remove_left_behind
from bench.cluster.rig import Cluster
from bench.cluster.tcp import stream_mbit
from bench.cluster.workers import WorkerRates
from bench.identity_plan import make_identity_plan
from client.batch import Batch, BatchResult
from contract.activation import BatchId, Hop
from contract.plan import Plan, Replica, place
from contract.prediction import DevicePrediction, EdgePrediction, Prediction

HERE = Path(__file__).parent.parent.parent


def result(seq: int, *hops: Hop) -> BatchResult:
    batch = Batch({}, ("a",))
    return BatchResult(BatchId(1, seq), batch, {}, 10.0, 0, hops, tuple("ab"[: len(hops)]))


def can_emulate() -> bool:
    """Root in a kernel with namespaces and the processor controller (a container may lack both)."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "tc", "setpriv", "taskset"))):
        return False
    probe = f"slc{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    try:
        return made and os.access(controller(), os.W_OK)
    except OSError:
        return False


needs_root = pytest.mark.skipif(not can_emulate(), reason="needs root, namespaces and cgroups")


def test_the_rate_counts_whole_intervals_after_the_warm_up() -> None:
    arrivals = [Arrival(at, result(0)) for at in (0.0, 9.0, 10.5, 11.0, 11.5, 12.5)]
    images_per_s, seconds = rate(arrivals, 10.0, images=4)
    assert seconds == 2.0
    assert images_per_s == 3 * 4 / 2.0


def test_too_few_results_are_no_rate() -> None:
    with pytest.raises(ValueError, match="2 results"):
        rate([Arrival(1.0, result(0)), Arrival(2.0, result(1))], 0.0, 1)


def test_a_devices_figures_are_of_its_own_batches_and_its_own_quota() -> None:
    hops = [Hop(0, 1000 * n, 1000 * n + 4000, 1000 * n + 4500) for n in (1, 2, 3)]
    quiet = Throttling(0, 0, 0.0)
    used = (Usage(1.0, 1.0, 10, quiet), Usage(1.006, 1.003, 40, quiet))
    figures = device_figures(
        "a", 0, [result(n, hop) for n, hop in enumerate(hops)], used, 0.1, 0.2, (5, 6)
    )
    assert (figures.compute_ms, figures.wait_ms, figures.publish_ms) == (4.0, 2.0, 0.5)
    assert figures.main_ms == pytest.approx(2.0)
    assert figures.others_ms == pytest.approx(1.0)
    assert figures.switches == 10
    assert figures.busy == pytest.approx(0.009 / 0.1 / 0.2)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (0.4, (10_000, 4_000)),
        (0.1, (10_000, 1_000)),
        (0.05, (20_000, 1_000)),
        (1, (10_000, 10_000)),
    ],
)
def test_a_share_is_exact_and_never_below_what_the_kernel_takes(
    quota: float, expected: tuple[int, int]
) -> None:
    assert period_and_quota_us(quota) == expected


@pytest.mark.parametrize("quota", [0, -0.1, 1.1])
def test_a_share_that_is_none_is_refused(quota: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        period_and_quota_us(quota)


def test_more_devices_than_one_processor_carries_are_refused() -> None:
    check_shares([EmulatedDevice("a", 0.5), EmulatedDevice("b", 0.45)])
    with pytest.raises(ValueError, match=r"0\.96"):
        check_shares([EmulatedDevice("a", 0.5), EmulatedDevice("b", 0.46)])


def test_a_burst_is_two_milliseconds_but_never_less_than_a_packet() -> None:
    assert burst_bytes(1000) == 250_000
    assert burst_bytes(10) == 65_536


def test_only_our_own_names_are_ours() -> None:
    assert maker_of("slc123-d0") == 123
    assert maker_of("slc123-cpu") == 123
    assert maker_of("docker") is None
    assert maker_of("slc-123") is None


def run_figures(images_per_s: float, lost: int = 0) -> RunFigures:
    return RunFigures(images_per_s, 10, 1.0, 100.0, 200.0, 0.5, 0.2, (), 0, lost)


def replicated(tmp_path: Path, *names: str) -> Plan:
    plan = make_identity_plan(tmp_path, 400)
    return place(plan, [[Replica(device=name) for name in names]], "default")


def test_each_ratio_is_taken_within_its_round(tmp_path: Path) -> None:
    plan = replicated(tmp_path, "a", "b").model_copy(update={"prediction": None})
    runs = [run_figures(8.0), run_figures(4.0, lost=1), run_figures(6.0)]
    controls = [WorkerRates((5.0, 5.0)), WorkerRates((2.0, 2.0)), WorkerRates((4.0, 4.0))]
    alone = [WorkerRates((4.0, 4.0))] * 3
    found = row(plan, tmp_path, runs, alone, controls)
    assert found.images_per_s == 6.0
    assert found.of_control == 0.8
    assert found.of_control_range == (0.75, 1.0)
    assert found.of_bound == 0.75
    assert found.bound == 1.0
    assert found.lost == 1
    assert found.error is None


def test_a_prediction_stands_beside_what_was_measured(tmp_path: Path) -> None:
    predicted = DevicePrediction(
        device="a",
        stage_index=0,
        share=1.0,
        compute_ms=90.0,
        relay_ms=1.0,
        transfer_ms=1.0,
        utilisation=1.0,
        memory_bytes=50,
    )
    edge = EdgePrediction(edge=0, codec="float32", bytes_per_batch=1, transfer_ms=0, broker_ms=0)
    prediction = Prediction(
        images_per_s=9.0,
        latency_ms=1.0,
        loaded_latency_ms=2.0,
        window=2,
        bottleneck="a",
        bound_images_per_s=9.0,
        broker_bytes_per_image=1.0,
        devices=(predicted,),
        edges=(edge, edge.model_copy(update={"edge": 1})),
        based_on="a test",
    )
    plan = replicated(tmp_path, "a").model_copy(update={"prediction": prediction})
    device = DeviceFigures("a", 0, 10, 99.0, 0.0, 0.0, 2.0, 1.0, 5.0, 0.9, 60, 70)
    run = dataclasses.replace(run_figures(10.0), devices=(device,))
    found = row(plan, tmp_path, [run], [WorkerRates((10.0,))], [WorkerRates((11.0,))])
    assert found.error == pytest.approx(-0.1)
    assert found.error_at_same_speed is None
    faster = row(plan, tmp_path, [run], [WorkerRates((10.0,))], [WorkerRates((11.0,))], 10.0)
    assert faster.error_at_same_speed == pytest.approx(-0.01)
    assert found.predicted_latency_ms == 2.0
    (shown,) = found.devices
    assert (shown.predicted_compute_ms, shown.alone_ms) == (90.0, 100.0)
    assert (shown.predicted_memory_bytes, shown.peak_rss_bytes) == (50, 70)
    assert shown.cpu_ms == 3.0
    assert shown.relay_share == pytest.approx(1 / 3)


def test_the_replicas_of_a_stage_add_up(tmp_path: Path) -> None:
    assert slowest_stage(replicated(tmp_path, "a", "b"), WorkerRates((3.0, 1.5))) == 4.5


def best_mbit(sender: Host, receiver: Host) -> float:
    """A busy machine fills a cable less than it could: only the best of a few runs tells its rate.

    A cable that lets more through does so in any of them.
    """
    return max(stream_mbit(sender, receiver, 0.6) for _ in range(4))


@needs_root
@pytest.mark.xdist_group("namespaces")
def test_a_cable_has_its_rate_in_both_directions_and_nothing_is_left() -> None:
    with network({"broker": 1000, "client": 1000, "d0": 100}) as hosts, inside(hosts["client"]):
        there = best_mbit(hosts["d0"], hosts["broker"])
        back = best_mbit(hosts["broker"], hosts["d0"])
    assert 70 < there < 105
    assert 70 < back < 105
    assert not Path(f"/run/netns/{hosts['d0'].namespace}").exists()


def burn(seconds: float) -> Sequence[str]:
    code = (
        f"import time; e = time.monotonic() + {seconds}\n"
        "while time.monotonic() < e: pass\nprint(time.process_time())"
    )
    return [sys.executable, "-c", code]


@needs_root
def test_a_share_holds_a_process_to_its_quota() -> None:
    with ProcessorShare("test", 0.2) as share:
        share.limit()
        with subprocess.Popen(burn(1.5), stdout=subprocess.PIPE) as process:
            share.add(process.pid)
            assert process.stdout is not None
            used_s = float(process.stdout.read())
        assert share.throttling().throttled > 50
    assert 0.1 < used_s / 1.5 < 0.28
    assert not share.folder.exists()


def namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").iterdir()}


@needs_root
@pytest.mark.xdist_group("namespaces")
def test_what_a_killed_rig_leaves_behind_is_removed() -> None:
    code = (
        "import os, signal\nfrom bench.cluster.network import network\n"
        "with network({'broker': 10, 'client': 10}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=HERE)
    killed.wait(timeout=30)
    time.sleep(0.1)
    left = {f"slc{killed.pid}-{name}" for name in ("hub", "broker", "client")}
    assert left <= namespaces()
    assert left <= set(remove_left_behind())
    assert not left & namespaces()


@needs_root
@pytest.mark.xdist_group("namespaces")
def test_a_plan_runs_on_emulated_devices_and_every_batch_comes_back(tmp_path: Path) -> None:
    devices = [EmulatedDevice(name, 0.4, engine="identity") for name in ("a", "b")]
    plan = replicated(tmp_path, "a", "b")
    with Cluster(devices) as cluster:
        cluster.publish(plan, tmp_path / "identity")
        figures = cluster.run(plan, seconds=1.0)
        with pytest.raises(ValueError, match="nobody"):
            cluster.publish(place(plan, [[Replica(device="nobody")]], "default"), tmp_path)
    assert figures.lost == 0
    assert figures.images_per_s > 10
    assert {d.device for d in figures.devices} == {"a", "b"}
    assert all(d.batches > 3 and d.main_ms > 0 and d.rss_bytes > 10**7 for d in figures.devices)
    assert json.dumps(figures.latency_ms_p50)
