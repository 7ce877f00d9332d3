"""What a running plan does is measured by its own results."""

import json
from pathlib import Path

import pytest

from broker.transport import Callbacks, Connect, ConnectionSettings
from client.batch import Batch, BatchResult
from client.measure import Phase, measure, measure_devices, measure_edges
from client.memory_watch import MemoryWatch
from client.settings import ClientSettings
from contract.activation import BatchId, Hop
from contract.errors import PlanMismatchError
from contract.plan import Plan, Replica, place
from contract.topics import metrics_topic
from tests.conftest import Run, StartStage, eventually
from tests.pipeline.test_wiring import publish_plan
from tests.tiny import make_tiny_plan


def silent(_step: str, _share: float) -> None:
    pass


def settings(cluster: str, unique: str) -> ClientSettings:
    return ClientSettings(name=f"client-{unique}", cluster=cluster)


@pytest.fixture
def running(
    tmp_path: Path, connect: Connect, cluster: str, unique: str, start_stage: StartStage
) -> Plan:
    """The tiny plan with two replicas of its middle stage."""
    names = [f"pi-{i}-{unique}" for i in range(4)]
    plan = make_tiny_plan(tmp_path, devices=(), cluster=cluster)
    groups = [names[:1], names[1:3], names[3:]]
    plan = place(plan, [[Replica(device=name) for name in group] for group in groups], cluster)
    for name in names:
        start_stage(name, tmp_path)
    publish_plan(connect, plan, cluster)
    return plan


def test_every_device_and_every_edge_of_a_running_plan_is_measured(
    running: Plan, connect: Connect, cluster: str, unique: str
) -> None:
    steps: list[str] = []
    plan, found = measure(
        settings(cluster, unique),
        connect,
        None,
        running.plan_id,
        seconds=0.5,
        progress=lambda step, _share: steps.append(step),
        memory={running.placement[0].replicas[0].device: 77},
    )
    assert plan.placement == running.placement
    assert found.window == 8  # two for each device
    assert found.images_per_s > 0
    assert 0 < found.latency_ms <= found.loaded_latency_ms * 2
    by_name = {device.device: device for device in found.devices}
    assert set(by_name) == {r.device for spot in running.placement for r in spot.replicas}
    middle = [device for device in found.devices if device.stage_index == 1]
    ends = [device for device in found.devices if device.stage_index != 1]
    assert sum(device.batches for device in middle) == ends[0].batches == ends[1].batches
    assert all(device.batches for device in middle)  # the client shares
    assert found.devices[0].rss_bytes == 77
    assert [edge.edge for edge in found.edges] == [0, 1, 2, 3]
    assert [edge.bytes_per_batch for edge in found.edges] == [
        running.edge_bytes(edge, running.batch_size) for edge in range(4)
    ]
    assert set(steps) == {"one at a time", "full window"}


def test_another_published_plan_is_refused(
    running: Plan, connect: Connect, cluster: str, unique: str
) -> None:
    with pytest.raises(PlanMismatchError, match="shardline publish"):
        measure(settings(cluster, unique), connect, None, "0" * 16, 0.5, silent)


def result(seq: int, route: tuple[str, str, str], hops: tuple[Hop, Hop, Hop]) -> BatchResult:
    batch = Batch({}, ("a", "b"))
    return BatchResult(BatchId(1, seq), batch, {}, 10.0, 0, hops, route)


def test_times_of_a_device_come_from_its_own_clock_and_only_for_its_batches(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path, devices=())
    groups = [["a"], ["b", "c"], ["d"]]
    plan = place(plan, [[Replica(device=name) for name in group] for group in groups], "default")
    hour = 3_600_000_000  # how far ahead the clock of b and c is

    def hops(start_us: int, compute_us: int) -> tuple[Hop, Hop, Hop]:
        one = Hop(start_us, start_us + 100, start_us + 1100, start_us + 1300)
        begun = start_us + hour + 2000
        two = Hop(begun, begun + 50, begun + 50 + compute_us, begun + 60 + compute_us)
        last = Hop(start_us + 9000, start_us + 9100, start_us + 9200, start_us + 9300)
        return one, two, last

    results = (
        result(0, ("a", "b", "d"), hops(0, 3000)),
        result(1, ("a", "c", "d"), hops(10_000, 5000)),
        result(2, ("a", "b", "d"), hops(20_000, 3400)),
    )
    phase = Phase(results, (-500, 9_500, 19_500), (9_400, 19_400, 29_400), 100.0)
    devices = {device.device: device for device in measure_devices(plan, phase)}
    assert (devices["b"].batches, devices["c"].batches) == (2, 1)
    assert devices["b"].compute_ms == pytest.approx(3.2)
    assert devices["c"].compute_ms == pytest.approx(5.0)
    assert devices["a"].utilisation == pytest.approx(3 * 1.2 / 20, abs=1e-4)
    assert devices["a"].rss_bytes is None
    edges = measure_edges(plan, phase)
    assert edges[0].transfer_ms == pytest.approx(0.5)
    assert edges[1].transfer_ms is not None
    assert edges[1].transfer_ms > 3_000_000  # the hour: two clocks
    assert edges[2].transfer_ms is None  # and back again: less than nothing says nothing
    assert edges[3].transfer_ms == pytest.approx(0.1)


def test_the_most_memory_that_a_device_reported_is_kept(
    connect: Connect, cluster: str, unique: str, tmp_path: Path, start_stage: StartStage
) -> None:
    device = f"pi-{unique}"
    with MemoryWatch(connect, cluster, f"watch-{unique}") as watch:
        stranger = connect(ConnectionSettings(name=f"x-{unique}"), Callbacks(lambda _: None))
        for payload in (b"\xff", b"{}", json.dumps({"device": "other"}).encode()):
            stranger.publish(metrics_topic(cluster, f"x-{unique}"), payload).result(timeout=5)
        stranger.close()
        start_stage(device, tmp_path)
        eventually(lambda: device in watch.rss_bytes, "a device reports its memory")
        assert watch.rss_bytes[device] > 10_000_000
        assert set(watch.rss_bytes) == {device}


def test_verify_prints_and_keeps_predicted_and_measured(
    running: Plan, shared_broker: object, cluster: str, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "tiny"
    address = shared_broker.address  # type: ignore[attr-defined]
    options = ("--broker", address, "--cluster", cluster, "--seconds", 3)
    done = run("verify", folder, *options)
    assert done.code == 0, done
    assert "predicted" in done.out
    assert "measured" in done.out
    kept = json.loads((folder / "plan.json").read_text())
    assert kept["measurement"]["images_per_s"] > 0
    assert all(device["rss_bytes"] for device in kept["measurement"]["devices"])
    assert kept["placement"] == json.loads(running.to_json())["placement"]
    again = run("verify", folder, "--json", *options)
    assert again.code == 0, again
    assert json.loads(again.out)["measurement"]["window"] == 8
    shown = run("show", folder)
    assert "measured" in shown.out
