"""How many batches in flight keep replicas busy that differ in speed: simulated, without clock."""

import heapq
from collections import Counter
from pathlib import Path

import pytest

from client.feed import MOST_TIMES_THE_SLOWEST, default_window
from client.router import Router
from contract.activation import BatchId
from contract.plan import Plan, Replica, place
from tests.tiny import make_tiny_plan


def plan_of(tmp_path: Path, *speeds: tuple[float, ...]) -> Plan:
    """The tiny model's stages on devices of these speeds; stages without any get one of 1.0."""
    base = make_tiny_plan(tmp_path, devices=())
    wanted = [*speeds, *[(1.0,)] * (base.num_stages - len(speeds))]
    devices = [
        [Replica(device=f"d{stage}-{n}", speed=speed) for n, speed in enumerate(of_stage)]
        for stage, of_stage in enumerate(wanted)
    ]
    return place(base, devices, "home")


def simulate(plan: Plan, window: int, batches: int = 600) -> tuple[float, Counter[str]]:
    """Batches a second of stage 0's replicas, and how many each took; a way back of 0.2 s."""
    router = Router(plan)
    speeds = {r.device: r.speed for spot in plan.placement for r in spot.replicas}
    for device in speeds:
        router.set_live(device, True)
    free_at = dict.fromkeys(speeds, 0.0)
    taken: Counter[str] = Counter()
    under_way: list[tuple[float, int]] = []
    now = 0.0
    for seq in range(batches):
        if len(under_way) == window:
            now, ended = heapq.heappop(under_way)
            router.end((BatchId(1, ended), 0))
        route = router.choose()
        assert route is not None
        router.begin((BatchId(1, seq), 0), route)
        device = route[0]
        taken[device] += 1
        free_at[device] = max(free_at[device], now) + 1 / speeds[device]
        heapq.heappush(under_way, (free_at[device] + 0.2, seq))
    return batches / now, taken


def test_equal_devices_have_two_batches_each(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, (2.0, 2.0), (0.5,))
    devices = sum(len(spot.replicas) for spot in plan.placement)
    assert default_window(plan) == 2 * devices


@pytest.mark.parametrize("speeds", [(0.4, 0.2), (0.4, 0.1), (1.0, 0.6, 0.15), (0.7, 0.1)])
def test_the_default_window_keeps_every_replica_busy(
    tmp_path: Path, speeds: tuple[float, ...]
) -> None:
    plan = plan_of(tmp_path, speeds)
    rate, taken = simulate(plan, default_window(plan))
    assert rate > 0.95 * sum(speeds)
    for number, speed in enumerate(speeds):
        assert taken[f"d0-{number}"] / taken.total() == pytest.approx(speed / sum(speeds), rel=0.1)


def test_two_batches_each_would_leave_a_slow_replica_without_any(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, (0.4, 0.1))
    rate, taken = simulate(plan, 4)
    assert taken["d0-1"] == 0
    assert rate < 0.42


def test_a_hopelessly_slow_replica_does_not_fill_the_pipeline(tmp_path: Path) -> None:
    one = default_window(plan_of(tmp_path / "one", (1.0,)))
    assert default_window(plan_of(tmp_path / "two", (100.0, 1.0))) == one + 2 * (
        MOST_TIMES_THE_SLOWEST
    )
