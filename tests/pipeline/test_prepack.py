"""The plan says per device whether its engine may keep a reordered copy of the weights."""

from pathlib import Path

import pytest

from broker.transport import Connect
from contract.plan import Plan, Replica, place
from shards.reader import Shard
from stage.engine import Engine, load_engine
from tests.conftest import StartStage, eventually
from tests.pipeline.test_wiring import publish_plan
from tests.tiny import make_tiny_plan


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Every load of an engine: the stage, and whether it was prepacked."""
    found: list[tuple[int, bool]] = []

    def record(name: str, shard: Shard, threads: int, prepack: bool = True) -> Engine:
        found.append((shard.manifest.stage_index, prepack))
        return load_engine(name, shard, threads, prepack)

    monkeypatch.setattr("stage.loader.load_engine", record)
    return found


def placed(plan: Plan, devices: list[str], cluster: str, unpacked: set[int]) -> Plan:
    replicas = [
        [Replica(device=name, prepack=index not in unpacked)] for index, name in enumerate(devices)
    ]
    return place(plan, replicas, cluster)


def test_a_device_packs_its_weights_unless_the_plan_says_no(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    start_stage: StartStage,
    loads: list[tuple[int, bool]],
) -> None:
    devices = [f"pi-{i}-{unique}" for i in range(3)]
    plan = make_tiny_plan(tmp_path, devices=(), cluster=cluster)
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, placed(plan, devices, cluster, unpacked={1}), cluster)
    eventually(lambda: len(loads) == 3, "all three load")
    assert sorted(loads) == [(0, True), (1, False), (2, True)]
    # The same stages with other permissions: only the device that it concerns loads again.
    publish_plan(connect, placed(plan, devices, cluster, unpacked={1, 2}), cluster)
    eventually(lambda: len(loads) == 4, "one loads again")
    assert loads[3] == (2, False)


def test_a_device_that_was_told_not_to_pack_never_does(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    start_stage: StartStage,
    loads: list[tuple[int, bool]],
) -> None:
    devices = [f"pi-{i}-{unique}" for i in range(3)]
    plan = make_tiny_plan(tmp_path, devices=(), cluster=cluster)
    start_stage(devices[0], tmp_path, prepack=False)
    publish_plan(connect, placed(plan, devices, cluster, unpacked=set()), cluster)
    eventually(lambda: loads, "it loads")
    assert loads == [(0, False)]
