"""The planner's service: devices go and come back, and every batch gets its one right result."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.embedded import EmbeddedBroker
from broker.transport import Callbacks, ConnectionSettings
from client.batch import BatchResult
from contract import topics
from contract.plan import parse_plan
from contract.status import EventKind
from planner.watch.notice import NoticeKind
from planner.watch.reaction import devices_of, is_same
from tests.conftest import eventually
from tests.pipeline.fakes import Run, is_answer_of, make_batches, publish_plan
from tests.pipeline.replan_site import GRACE_S, Device, Ground, ProcessDevice, limited_sites
from tests.planner.layered import build_layered
from tests.stage.harness import Listener

STAGE_BYTES, TWO_STAGES_BYTES = 100 * 16 * 12 * 4, 100 * (6 * 16 + 16 * 12) * 4
"""What the largest stage needs by `limited_sites`, in which no two fit; and two of them, in which
the whole model does not fit."""


@pytest.fixture
def ground(
    tmp_path: Path, cluster: str, unique: str, shared_broker: EmbeddedBroker
) -> Iterator[Ground]:
    ground = Ground(tmp_path, cluster, unique, shared_broker.address, devices=4)
    yield ground
    ground.close()


def test_a_device_killed_for_good_is_planned_around_and_used_again_when_it_is_back(
    ground: Ground,
) -> None:
    first, lost, last = ground.names[:3]
    ground.start_devices(first, lost, last, killable=lost)
    sites = limited_sites(dict.fromkeys(ground.names, TWO_STAGES_BYTES))
    ground.serve(ground.placed(), sites)
    ground.wait_for(NoticeKind.READY)
    wanted = ground.published
    killed = ground.devices[lost]
    assert isinstance(killed, ProcessDevice)

    ground.runs(60, lambda ended: killed.kill() if ended == 20 else None)
    survivors = ground.published
    assert survivors.plan_id != wanted.plan_id
    assert set(devices_of(survivors)) == {first, last}
    assert survivors.model == wanted.model
    assert survivors.batch_size == wanted.batch_size
    assert ground.told(NoticeKind.DEVICE_LOST)[0].detail == f"device {lost} is away (offline)"

    def back(ended: int) -> None:
        if ended == 10:
            killed.start()
            ground.wait_for(NoticeKind.READY, 3)

    ground.runs(60, back)
    assert is_same(ground.published, wanted)
    assert ground.events(EventKind.DEVICE_BACK)
    assert len(ground.events(EventKind.PLAN_CHANGED)) == 3

    killed.kill()  # the second time nothing has to be built
    ground.wait_for(NoticeKind.READY, 4)
    assert ground.published.plan_id == survivors.plan_id
    assert "a plan from before" in ground.told(NoticeKind.PUBLISHED)[-1].detail


def test_a_spare_device_takes_the_lost_stage_and_the_plan_stays_the_same(ground: Ground) -> None:
    first, lost, last, spare = ground.names
    ground.start_devices()
    ground.serve(ground.placed(), limited_sites(dict.fromkeys(ground.names, STAGE_BYTES)))
    ground.wait_for(NoticeKind.READY)
    wanted = ground.published

    ground.runs(40, lambda ended: ground.devices[lost].stop() if ended == 10 else None)
    moved = ground.published
    assert moved.plan_id == wanted.plan_id
    assert devices_of(moved) == [first, spare, last]
    assert moved.placement[0] == wanted.placement[0]
    assert "the same stages" in ground.told(NoticeKind.PUBLISHED)[-1].detail

    ground.devices[lost].start()
    eventually(lambda: is_same(ground.published, wanted), "the wanted plan runs again", 30)
    ground.runs(20)


def test_with_a_replica_a_death_changes_nothing(ground: Ground) -> None:
    first, one, last, two = ground.names
    ground.start_devices()
    ground.serve(
        ground.placed(first, [one, two], last),
        limited_sites(dict.fromkeys(ground.names, STAGE_BYTES)),
    )
    ground.wait_for(NoticeKind.READY)
    wanted = ground.published
    ground.runs(60, lambda ended: ground.devices[one].stop() if ended == 10 else None)
    kept = ground.wait_for(NoticeKind.KEPT, timeout_s=30)  # it looked, after a long absence
    assert f"{one} stays away: no other plan is worth the change" in kept.detail
    assert len(ground.told(NoticeKind.PUBLISHED)) == 1
    assert is_same(ground.published, wanted)


def test_a_device_that_restarts_within_the_grace_changes_nothing(ground: Ground) -> None:
    ground.start_devices(*ground.names[:3])
    ground.serve(ground.placed(), grace_s=20.0)
    ground.wait_for(NoticeKind.READY)

    def restart(ended: int) -> None:
        if ended in (10, 30, 50):
            ground.devices[ground.names[1]].stop()
            ground.devices[ground.names[1]].start()

    ground.runs(80, restart)
    ground.wait_for(NoticeKind.DEVICE_BACK, 3)
    assert len(ground.told(NoticeKind.DEVICE_BACK)) == 3
    assert len(ground.told(NoticeKind.PUBLISHED)) == 1
    assert ground.told(NoticeKind.PLANNING) == []


def test_a_device_that_comes_and_goes_is_taken_back_ever_more_slowly(ground: Ground) -> None:
    """Each time away for longer than the grace: planned around once, not once for each time."""
    ground.start_devices(*ground.names[:3])
    ground.serve(ground.placed())
    ground.wait_for(NoticeKind.READY)
    flapping = ground.devices[ground.names[1]]
    flapping.stop()
    ground.wait_for(NoticeKind.READY, 2)
    for count in range(3):  # back for less than it has to stay
        flapping.start()
        ground.wait_for(NoticeKind.DEVICE_BACK, count + 1)
        flapping.stop()
        time.sleep(1.5 * GRACE_S)
    assert len(ground.told(NoticeKind.PUBLISHED)) == 2
    flapping.start()
    started = time.monotonic()
    ground.wait_for(NoticeKind.READY, 3)
    assert time.monotonic() - started > 4 * GRACE_S  # eight graces after four losses
    ground.runs(10)


def test_another_plan_in_the_middle_answers_every_batch_in_one_plan(
    ground: Ground, tmp_path: Path
) -> None:
    """A rolling update by hand, beside the service: it does not fight for its own plan."""
    other = build_layered(tmp_path / "built", name="other", seed=1)
    ground.start_devices(*ground.names[:3])
    ground.serve(ground.placed())
    ground.wait_for(NoticeKind.READY)
    with ground.client() as pipeline:
        pipeline.open()
        ends = []
        for end in pipeline.run(make_batches(80)):
            ends.append(end)
            if len(ends) == 20:
                _publish_by_hand(ground, tmp_path / "built" / other.name)
        counts = pipeline.counts(finished=True)
    results = [end for end in ends if isinstance(end, BatchResult)]
    first, second = ([is_answer_of(result, seed) for result in results] for seed in (0, 1))
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(first[:20])
    assert second[-1]
    assert (counts.delivered, counts.dead, counts.lost) == (80, 0, 0)
    ground.wait_for(NoticeKind.STANDING_ASIDE)
    ground.devices[ground.names[1]].stop()
    time.sleep(3 * GRACE_S)
    assert ground.published.plan_id == other.plan_id
    assert len(ground.told(NoticeKind.PUBLISHED)) == 1


def _publish_by_hand(ground: Ground, folder: Path) -> None:
    command = [sys.executable, "-m", "shardline", "publish", str(folder)]
    command += ["--broker", str(ground.address), "--cluster", ground.cluster]
    for name in ground.names[:3]:
        command += ["--device", name]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_a_plan_that_is_taken_down_for_a_while_costs_time_only(ground: Ground) -> None:
    """The client keeps what it knows; devices unload, refuse, and load again."""
    ground.start_devices(*ground.names[:3])
    ground.serve(ground.placed())
    ground.wait_for(NoticeKind.READY)
    ground.end_service()
    plan = ground.published
    admin = ground.connect(
        ConnectionSettings(name=f"admin-{ground.unique}"), Callbacks(lambda d: d.ack())
    )

    def take_down(ended: int) -> None:
        if ended == 20:
            admin.publish(topics.plan_topic(ground.cluster), b"", retain=True).result(timeout=5)
            time.sleep(0.5)
            publish_plan(ground.connect, plan, ground.cluster)

    ground.runs(60, take_down)
    admin.close(forget_session=True)


@pytest.mark.parametrize("named", [True, False], ids=["devices-named", "devices-online"])
def test_a_service_that_is_started_again_goes_on_where_it_was(ground: Ground, named: bool) -> None:
    ground.start_devices(*ground.names[:3])
    ground.serve(ground.placed())
    ground.wait_for(NoticeKind.READY)
    ground.devices[ground.names[1]].stop()
    ground.wait_for(NoticeKind.READY, 2)
    around = ground.published
    ground.end_service()
    assert ground.told(NoticeKind.STOPPED)
    ground.notices.clear()

    ground.serve(ground.placed())
    ground.wait_for(NoticeKind.READY)
    time.sleep(2 * GRACE_S)
    assert is_same(ground.published, around)
    assert len(ground.told(NoticeKind.PUBLISHED)) == 1
    assert "going on" in ground.told(NoticeKind.PUBLISHED)[0].detail
    ground.runs(10)
    ground.devices[ground.names[1]].start()
    eventually(lambda: is_same(ground.published, ground.placed()), "the wanted plan", 30)


def test_without_devices_that_can_hold_the_model_the_service_waits(ground: Ground) -> None:
    names = ground.names[:3]
    ground.start_devices(*names)
    ground.serve(ground.placed(), limited_sites(dict.fromkeys(names, STAGE_BYTES)))
    ground.wait_for(NoticeKind.READY)
    wanted = ground.published
    ground.devices[names[1]].stop()
    told = ground.wait_for(NoticeKind.IMPOSSIBLE)
    assert "stage 1 has lost" in told.detail
    assert "MB" in told.detail  # which limit fails
    eventually(lambda: ground.events(EventKind.PLAN_IMPOSSIBLE), "the event")
    time.sleep(2 * GRACE_S)
    assert len(ground.told(NoticeKind.PLANNING)) == 1  # the same question is asked once
    assert is_same(ground.published, wanted)
    ground.devices[names[1]].start()
    ground.runs(10)


def test_a_device_with_a_new_disk_gets_its_shard_again(ground: Ground) -> None:
    ground.start_devices(*ground.names[:3])
    ground.serve(ground.placed(), grace_s=20.0)
    ground.wait_for(NoticeKind.READY)
    device = ground.devices[ground.names[1]]
    assert isinstance(device, Device)
    device.stop()
    shutil.rmtree(device.disk)
    device.start()
    ground.wait_for(NoticeKind.READY, 2)
    assert "handed out again" in ground.told(NoticeKind.PUBLISHED)[-1].detail
    ground.runs(10)


def test_devices_that_come_late_get_their_shards_then(ground: Ground) -> None:
    """After a power cut the planner may be there first."""
    ground.serve(ground.placed(), grace_s=20.0)
    ground.wait_for(NoticeKind.PUBLISHED)
    ground.start_devices(*ground.names[:3])
    ground.wait_for(NoticeKind.READY)
    ground.runs(10)


def test_a_plan_without_devices_waits_until_enough_are_online(ground: Ground) -> None:
    ground.serve()
    assert "3 stages, 0 devices" in ground.wait_for(NoticeKind.WAITING).detail
    ground.start_devices(*ground.names[:3])
    ground.wait_for(NoticeKind.READY)
    assert devices_of(ground.published) == ground.names[:3]


# The broker goes


@pytest.fixture
def alone(
    tmp_path: Path, cluster: str, unique: str, own_broker: EmbeddedBroker
) -> Iterator[Ground]:
    """With a broker of its own, which forgets everything when it is killed."""
    ground = Ground(tmp_path, cluster, unique, own_broker.address)
    yield ground
    ground.close()


def test_a_broker_that_has_forgotten_everything_gets_the_plan_back(
    alone: Ground, own_broker: EmbeddedBroker
) -> None:
    alone.start_devices()
    alone.serve(alone.placed(), grace_s=20.0)
    alone.wait_for(NoticeKind.READY)

    def restart(ended: int) -> None:
        if ended == 20:
            own_broker.kill()
            own_broker.start()

    alone.runs(60, restart)
    alone.wait_for(NoticeKind.PUBLISHED, 2)
    late = Listener(alone.connect, f"late-{alone.unique}", topics.plan_topic(alone.cluster))
    eventually(lambda: late.of("plan"), "it is retained")
    assert late.of("plan")[0].retained
    assert is_same(parse_plan(late.of("plan")[0].payload, ""), alone.placed())
    late.close()
    assert alone.told(NoticeKind.PLANNING) == []


def test_a_device_that_died_with_the_broker_is_missed(
    alone: Ground, own_broker: EmbeddedBroker
) -> None:
    """No will tells of it."""
    lost = alone.names[1]
    alone.start_devices(killable=lost)
    alone.serve(alone.placed(), grace_s=6.0)  # a device takes up to 5 s to come back
    alone.wait_for(NoticeKind.READY)
    own_broker.kill()
    killed = alone.devices[lost]
    assert isinstance(killed, ProcessDevice)
    killed.kill()
    own_broker.start()
    eventually(
        lambda: lost not in devices_of(alone.published), f"planned around {alone.notices}", 60
    )
    assert f"device {lost} is away (is not heard)" in [
        told.detail for told in alone.told(NoticeKind.DEVICE_LOST)
    ]
    alone.runs(10)


# The command


def test_the_command_tells_a_script_what_happens_and_ends_in_order(
    ground: Ground, tmp_path: Path
) -> None:
    ground.start_devices(*ground.names[:3])
    command = [sys.executable, "-m", "shardline", "publish", str(ground.plan_folder), "--watch"]
    command += ["--json", "--grace", str(GRACE_S), "--broker", str(ground.address)]
    command += ["--cluster", ground.cluster, "--username", f"planner-{ground.unique}"]
    out = tmp_path / "out.jsonl"
    with out.open("w") as file:
        service = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True)

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in out.read_text().splitlines()]

    def kinds() -> list[object]:
        return [line["kind"] for line in lines()]

    try:
        eventually(lambda: "ready" in kinds(), "it is ready", 60)
        ground.devices[ground.names[1]].stop()
        eventually(lambda: kinds().count("ready") == 2, "it has planned anew", 60)
        plan_id = ground.published.plan_id
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=20) == 0
    finally:
        service.kill()
        _, errors = service.communicate()
    assert errors == ""
    assert kinds() == [
        *("published", "ready", "device_lost", "planning", "published", "ready", "stopped"),
    ]
    assert lines()[4]["plan_id"] == plan_id
    late = Listener(ground.connect, f"late-{ground.unique}", topics.plan_topic(ground.cluster))
    eventually(lambda: late.of("plan"), "the plan stays")
    late.close()


def test_a_client_survives_plan_after_plan(ground: Ground) -> None:
    """Back and forth between two plans while batches fly."""
    first, second, third = ground.names[:3]
    ground.start_devices(first, second, third)
    ground.serve(ground.placed())
    ground.wait_for(NoticeKind.READY)
    ground.devices[second].stop()
    ground.wait_for(NoticeKind.READY, 2)
    around, wanted = ground.published, ground.placed()
    ground.end_service()
    ground.devices[second].start()

    def switch(ended: int) -> None:
        if ended % 20 == 0:
            publish_plan(ground.connect, (wanted, around)[ended // 20 % 2], ground.cluster)

    with ground.client() as pipeline:
        pipeline.open()
        run = Run(pipeline, make_batches(120)).go(switch)
        run.keeps_the_promise()
