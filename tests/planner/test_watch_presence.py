"""Who is there, as statuses, wills and signs of life tell it; who comes and goes."""

from contract.status import DeviceState, DeviceStatus, ShardState
from planner.watch.backoff import Backoff
from planner.watch.presence import FLAPS_WITHIN_S, LONGEST_SETTLING_S, News, Presence

GRACE_S = 10.0


def status(
    device: str,
    state: DeviceState = DeviceState.ONLINE,
    boot: int = 1,
    shard: ShardState = ShardState.READY,
    error: str | None = None,
) -> DeviceStatus:
    return DeviceStatus(device=device, state=state, boot=boot, shard=shard, error=error)


OFFLINE, STOPPED = DeviceState.OFFLINE, DeviceState.STOPPED


def there(*devices: str) -> Presence:
    presence = Presence(GRACE_S, 0.0)
    for device in devices:
        presence.take(status(device), retained=False, now_s=0.0)
    return presence


def test_a_device_that_speaks_is_there_and_usable() -> None:
    view = there("a").view(0.0)
    assert view.up == view.usable == view.reachable == {"a"}
    assert not view.gone


def test_what_the_broker_remembers_counts_when_the_device_is_heard() -> None:
    presence = Presence(GRACE_S, 0.0)
    presence.take(status("a"), retained=True, now_s=0.0)
    assert presence.view(1.0).up == set()
    assert presence.view(1.0).reachable == {"a"}
    presence.sign("a")
    assert presence.view(1.0).up == {"a"}


def test_a_device_that_died_with_the_broker_is_gone_after_the_grace() -> None:
    """Nobody published its will: its retained status says online for ever."""
    presence = there("a", "b")
    presence.connected(100.0)
    presence.take(status("a"), retained=True, now_s=100.0)
    presence.take(status("b"), retained=True, now_s=100.0)
    presence.sign("b")
    assert presence.view(109.0).gone == set()
    assert presence.news(109.0) == []
    assert presence.view(110.0).gone == {"a"}
    assert presence.news(110.0) == [News("a", "is not heard")]
    assert presence.view(110.0).up == {"b"}


def test_a_broker_that_was_away_is_no_loss_of_a_device_that_answers() -> None:
    presence = there("a")
    presence.connected(100.0)
    presence.sign("a")
    assert presence.settling_s("a", 101.0) == 0.0
    assert presence.view(101.0).usable == {"a"}
    assert presence.news(101.0) == []


def test_a_will_is_told_at_once_and_means_something_after_the_grace() -> None:
    presence = there("a")
    presence.take(status("a", OFFLINE), retained=False, now_s=5.0)
    assert presence.news(5.0) == [News("a", "offline")]
    assert presence.news(5.1) == []
    assert presence.view(5.0).up == set()
    assert presence.view(14.9).gone == set()
    assert presence.view(15.0).gone == {"a"}
    assert presence.view(15.0).long_gone == set()
    assert presence.view(55.0).long_gone == {"a"}


def test_the_late_will_of_an_earlier_start_changes_nothing() -> None:
    presence = there("a")
    presence.take(status("a", boot=2), retained=False, now_s=3.0)
    presence.take(status("a", OFFLINE, boot=1), retained=False, now_s=4.0)
    assert presence.view(4.0).up == {"a"}


def test_a_wanted_device_that_never_came_is_gone_after_the_grace() -> None:
    presence = Presence(GRACE_S, 0.0)
    presence.expect(["a"], 0.0)
    assert presence.news(9.0) == []
    assert presence.news(10.0) == [News("a", "not seen")]
    assert presence.view(10.0).gone == {"a"}


def test_a_stranger_of_long_ago_is_no_news() -> None:
    presence = Presence(GRACE_S, 0.0)
    presence.take(status("old", STOPPED), retained=True, now_s=0.0)
    assert presence.news(100.0) == []


def test_a_device_that_is_back_is_used_when_it_has_stayed() -> None:
    presence = there("a")
    presence.take(status("a", OFFLINE), retained=False, now_s=20.0)
    presence.news(20.0)
    presence.take(status("a", boot=2), retained=False, now_s=50.0)
    assert presence.news(50.0) == [News("a", None)]
    assert presence.view(50.0).up == {"a"}
    assert presence.view(59.9).usable == set()
    assert presence.view(60.0).usable == {"a"}


def test_each_further_loss_doubles_the_wait_up_to_a_limit() -> None:
    presence = there("a")
    now_s, waits = 0.0, []
    for boot in range(1, 9):
        presence.take(status("a", OFFLINE, boot=boot), retained=False, now_s=now_s)
        presence.take(status("a", boot=boot + 1), retained=False, now_s=now_s + 1)
        now_s += 2
        waits.append(presence.settling_s("a", now_s))
    assert waits[:4] == [10.0, 20.0, 40.0, 80.0]
    assert waits[-1] == LONGEST_SETTLING_S
    assert presence.settling_s("a", now_s + FLAPS_WITHIN_S) == 0.0


def test_a_restart_that_nobody_saw_counts_as_a_loss() -> None:
    presence = there("a")
    presence.take(status("a", boot=2), retained=False, now_s=5.0)
    assert presence.settling_s("a", 5.0) == GRACE_S
    assert presence.view(5.0).up == {"a"}
    assert presence.view(5.0).usable == set()


def test_a_device_that_cannot_load_its_shard_is_not_there() -> None:
    presence = there("a")
    failed = status("a", shard=ShardState.FAILED, error="no room on the disk")
    presence.take(failed, retained=False, now_s=5.0)
    assert presence.news(5.0) == []  # it may be handed out again
    assert presence.news(15.0) == [News("a", "no room on the disk")]
    view = presence.view(15.0)
    assert view.gone == view.reachable == {"a"}
    assert view.up == set()
    presence.take(status("a"), retained=False, now_s=20.0)
    assert presence.news(20.0) == [News("a", None)]


def test_waits_double_and_are_forgotten_after_a_success() -> None:
    backoff = Backoff(2.0, 10.0)
    assert backoff.is_due("x", 0.0)
    assert [backoff.failed("x", 0.0) for _ in range(5)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert not backoff.is_due("x", 9.9)
    assert backoff.is_due("x", 10.0)
    assert backoff.is_due("y", 0.0)
    backoff.succeeded("x")
    assert backoff.failed("x", 20.0) == 2.0


def test_a_device_that_comes_back_without_its_shard_gets_the_grace_anew() -> None:
    presence = there("a")
    presence.take(status("a", OFFLINE), retained=False, now_s=5.0)
    assert presence.view(50.0).gone == {"a"}
    failed = status("a", boot=2, shard=ShardState.FAILED, error="not in the cache")
    presence.take(failed, retained=False, now_s=50.0)
    assert presence.view(59.9).gone == set()
    assert presence.view(60.0).gone == {"a"}
