"""What the page is told: conditions, headline, stages, ledger. From messages as they come."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.dashboard.history import SAMPLES_KEPT, Samples
from client.dashboard.messages import DeviceMessage, ViewMessage
from client.dashboard.picture import DETAIL_SENT, EVENTS_SENT, picture_of
from contract.plan import Plan
from contract.status import DeviceState, ShardState
from tests.dashboard.made_up import Told, event_of, ledger_of, plan_on


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Stage 0 on two devices, the others on one."""
    return plan_on(tmp_path, [["pi-0", "pi-1"], ["pi-2"], ["pi-3"]])


@pytest.fixture
def told(plan: Plan) -> Told:
    """All is well: every device ready, one client feeds."""
    told = Told().plan(plan)
    for device in ("pi-0", "pi-1", "pi-2", "pi-3"):
        told.device(device, plan)
    return told.pipeline(plan)


def look(told: Told) -> ViewMessage:
    return picture_of(told.state.view(), 1_700_000_000.0, None)


def device(view: ViewMessage, name: str) -> DeviceMessage:
    [found] = [d for d in view.devices if d.device == name]
    return found


def headline(told: Told) -> tuple[str, str]:
    said = look(told).headline
    return str(said.level), said.text


def test_when_all_is_well_it_says_so(told: Told) -> None:
    assert headline(told) == ("good", "All 3 stages ready, nothing lost")
    view = look(told)
    assert [str(d.condition) for d in view.devices] == ["ready"] * 4
    assert [stage.ready_devices for stage in view.plan.stages] == [2, 1, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "condition"),
    [
        ({"state": DeviceState.OFFLINE}, "offline"),
        ({"state": DeviceState.STOPPED}, "stopped"),
        ({"shard": ShardState.FAILED, "error": "no room"}, "failed"),
        ({"shard": ShardState.LOADING}, "loading"),
        ({"plan_id": "0" * 16}, "loading"),
    ],
)
def test_a_device_is_what_its_status_says(
    told: Told, plan: Plan, changes: dict[str, Any], condition: str
) -> None:
    told.status("pi-2", plan, **changes)
    assert str(device(look(told), "pi-2").condition) == condition
    level, text = headline(told)
    if condition == "loading":
        assert (level, text) == ("idle", "Stage 1 is loading its shard")
    else:
        assert (level, text) == (
            "bad",
            f"Stage 1 has no device that is ready: pi-2 is {condition}",
        )


def test_a_stage_that_has_another_device_goes_on(told: Told, plan: Plan) -> None:
    told.status("pi-1", plan, state=DeviceState.OFFLINE)
    assert headline(told) == ("warning", "pi-1 is offline; every stage has another device")


def test_a_device_without_metrics_is_silent_and_one_never_heard_is_unseen(plan: Plan) -> None:
    told = Told().plan(plan)
    for name in ("pi-0", "pi-1", "pi-2"):
        told.device(name, plan)
    told.now += 60
    told.metrics("pi-0", plan).metrics("pi-2", plan).pipeline(plan)
    view = look(told)
    assert str(device(view, "pi-1").condition) == "silent"
    assert str(device(view, "pi-3").condition) == "unseen"
    assert headline(told)[1] == "Stage 2 has no device that is ready: pi-3 is unseen"


def test_a_device_that_is_not_in_the_plan_is_idle_and_comes_last(told: Told) -> None:
    told.device("a-spare", None)
    view = look(told)
    assert [d.device for d in view.devices] == ["pi-0", "pi-1", "pi-2", "pi-3", "a-spare"]
    assert str(device(view, "a-spare").condition) == "idle"
    assert headline(told)[0] == "good"


def test_a_broker_that_goes_makes_no_device_silent(told: Told, plan: Plan) -> None:
    told.state.set_connected(False)
    told.now += 60
    assert headline(told) == (
        "bad",
        "No connection to the broker for 60 s: shown is what was last heard",
    )
    view = look(told)
    assert {str(d.condition) for d in view.devices} == {"ready"}
    assert view.plan is not None
    assert view.plan.stages[0].utilisation == pytest.approx(0.48)
    assert view.sample.images_per_s is None, "charts show a gap, not what was"
    told.state.set_connected(True)
    told.now += 1
    assert {str(d.condition) for d in look(told).devices} == {"ready"}, (
        "its metrics may be on the way"
    )
    assert look(told).sample.images_per_s == 0
    told.now += 60
    assert look(told).devices == (), "nobody spoke again: it was hearsay"


def test_what_is_lost_goes_before_all_else(told: Told, plan: Plan) -> None:
    told.status("pi-2", plan, state=DeviceState.OFFLINE)
    told.pipeline(plan, ledger=ledger_of(lost=3, submitted=109))
    assert headline(told) == ("bad", "3 batches lost")


def test_nobody_feeds_and_no_plan_are_neither_good_nor_bad(told: Told, plan: Plan) -> None:
    told.now += 60
    for name in ("pi-0", "pi-1", "pi-2", "pi-3"):
        told.metrics(name, plan)
    assert headline(told) == ("idle", "All 3 stages ready; nobody feeds the pipeline")
    assert look(told).sample.images_per_s == 0
    assert look(Told()).headline.text == (
        "No plan is published in cluster home; no device is known"
    )
    assert look(Told().device("pi-0", None)).headline.text.endswith("; 1 device known")


@pytest.mark.parametrize(
    ("flags", "level"),
    [(("under_voltage",), "warning"), (("throttled_earlier",), "good"), (None, "good")],
)
def test_a_board_that_is_slowed_down_now_is_told(
    told: Told, plan: Plan, flags: tuple[str, ...] | None, level: str
) -> None:
    told.metrics("pi-1", plan, throttled=flags)
    assert headline(told)[0] == level
    if level == "warning":
        assert headline(told)[1] == "pi-1: slowed down by heat or power"


def test_many_lost_devices_are_counted(tmp_path: Path) -> None:
    names = [f"pi-{i}" for i in range(8)]
    plan = plan_on(tmp_path, [names[:6], names[6:7], names[7:]])
    told = Told().plan(plan)
    for name in names:
        told.device(name, plan)
    for name in names[:5]:
        told.status(name, plan, state=DeviceState.OFFLINE)
    assert headline(told)[1] == (
        "pi-0 is offline, pi-1 is offline, pi-2 is offline and 2 more; "
        "every stage has another device"
    )


def test_a_stage_sums_its_devices_up(told: Told, plan: Plan) -> None:
    told.metrics("pi-0", plan, utilisation=0.9, batches_per_s=9.0, compute_ms_mean=100.0)
    told.metrics("pi-1", plan, utilisation=0.5, batches_per_s=1.0, compute_ms_mean=500.0)
    view = look(told)
    assert view.plan is not None
    first, second, _ = view.plan.stages
    assert first.utilisation == pytest.approx(0.7)
    assert first.compute_ms == pytest.approx((9 * 100 + 1 * 500) / 10)
    assert first.bytes_in_per_s == pytest.approx(4.8e6)
    assert (first.queue_depth, first.batches_per_s) == (2, 10.0)
    assert (first.is_bottleneck, second.is_bottleneck) == (True, False)
    told.metrics("pi-0", plan, utilisation=0.2).metrics("pi-1", plan, utilisation=0.2)
    told.metrics("pi-2", plan, utilisation=0.2).metrics("pi-3", plan, utilisation=0.3)
    view = look(told)
    assert view.plan is not None
    assert not any(stage.is_bottleneck for stage in view.plan.stages), "nobody is held up"


def test_figures_are_means_of_five_seconds(told: Told, plan: Plan) -> None:
    """A batch of two seconds is one second's news and the next one's silence."""
    for second in range(20):
        busy = {"batches_per_s": 5.0, "bytes_out_per_s": 1e6, "compute_ms_mean": 700.0}
        idle = {"batches_per_s": 0.0, "bytes_out_per_s": 0.0, "compute_ms_mean": None}
        changes = busy if second % 5 == 0 else idle
        told.metrics("pi-2", plan, time_unix_s=1e6 + second, utilisation=0.7, **changes)
        told.pipeline(plan, time_unix_s=1e6 + second, images_per_s=40.0 if second % 5 == 0 else 0.0)
        if second < 4:
            continue
        view = look(told)
        assert view.plan is not None
        stage = view.plan.stages[1]
        assert (stage.batches_per_s, stage.compute_ms) == (pytest.approx(1.0), pytest.approx(700.0))
        assert stage.bytes_out_per_s == pytest.approx(2e5)
        assert view.sample.images_per_s == pytest.approx(8.0)
        assert device(view, "pi-2").metrics.utilisation == pytest.approx(0.7)  # type: ignore[union-attr]
    told.metrics("pi-2", plan, time_unix_s=1e6 + 60, utilisation=0.1)
    view = look(told)
    assert device(view, "pi-2").metrics.utilisation == pytest.approx(0.1), "a gap ends the mean"  # type: ignore[union-attr]


def test_a_stage_whose_devices_are_gone_has_no_figures(told: Told, plan: Plan) -> None:
    told.status("pi-2", plan, state=DeviceState.OFFLINE)
    view = look(told)
    assert view.plan is not None
    assert view.plan.stages[1].utilisation is None
    assert view.plan.stages[1].compute_ms is None
    assert view.plan.stages[1].bytes_out_per_s is None


def test_ledgers_of_several_clients_are_summed_up(told: Told, plan: Plan) -> None:
    told.pipeline(plan, "client-2", latency_ms_p50=900.0, images_per_s=10.0)
    view = look(told)
    assert view.ledger is not None
    assert (view.ledger.submitted, view.ledger.delivered) == (212, 200)
    assert view.sample.images_per_s == pytest.approx(42.0)
    assert view.sample.latency_ms_p50 == 900.0, "the slowest client's"


def test_of_texts_tokens_and_the_time_to_the_first_are_shown(told: Told, plan: Plan) -> None:
    assert look(told).sample.tokens_per_s == 0, "images have none"
    for second, rate in enumerate((10.0, 20.0)):
        of_texts = {"tokens_per_s": rate, "first_token_ms": 180.0, "images_per_s": 0.0}
        told.pipeline(plan, time_unix_s=2e9 + second, **of_texts)
    sample = look(told).sample
    assert sample.tokens_per_s == pytest.approx(15.0), "a mean, as all rates"
    assert sample.first_token_ms == 180.0


def test_clients_that_claim_absurd_numbers_do_not_stop_the_page(told: Told, plan: Plan) -> None:
    huge = ledger_of(submitted=2**63 - 1, delivered=2**63 - 1, lost=-(2**63) + 1)
    told.pipeline(plan, "client-2", ledger=huge).pipeline(plan, "client-3", ledger=huge)
    view = look(told)
    assert view.ledger is not None
    assert view.ledger.submitted == 2**63 - 1
    assert view.ledger.lost == -(2**63) + 1


def test_a_device_that_claims_absurd_rates_does_not_stop_the_page(told: Told, plan: Plan) -> None:
    claims = ((1e15, 1e15), (-1e15, 0.0), (1e-300, 0.0))
    for second, (rate, took_ms) in enumerate(claims):
        changes = {"batches_per_s": rate, "compute_ms_mean": took_ms, "wait_ms_mean": took_ms}
        told.metrics("pi-2", plan, time_unix_s=1e6 + second, **changes)
    look(told).model_dump_json()


def test_events_are_the_latest_and_short(told: Told) -> None:
    for index in range(EVENTS_SENT + 5):
        told.event(event_of(f"{index} " + "x" * 1000))
    events = look(told).events
    assert len(events) == EVENTS_SENT
    assert events[-1].detail.startswith(f"{EVENTS_SENT + 4} ")
    assert {len(event.detail) for event in events} == {DETAIL_SENT}


def test_a_message_is_one_line_of_json_whatever_a_device_says(told: Told, plan: Plan) -> None:
    """A line feed would end a server-sent event, and begin one of the device's own."""
    told.status("pi-2", plan, shard=ShardState.FAILED, error="a\n\ndata: {}\r\u2028</script>")
    told.event(event_of("b\n\nevent: view\ndata: 1"))
    text = look(told).model_dump_json()
    assert "\n" not in text
    assert "\r" not in text
    assert json.loads(text)["events"][0]["detail"] == r"b\n\nevent: view\ndata: 1"


# History


def test_the_history_is_bounded_and_its_columns_are_equally_long(told: Told, plan: Plan) -> None:
    samples = Samples()
    for second in range(SAMPLES_KEPT + 20):
        if second == 150:
            told.device("pi-9", None)
        view = look(told).model_copy()
        samples.add(view.sample, view.devices, is_connected=second != 199)
    history = samples.history(look(told).devices)
    columns = history.model_dump()
    utilisation = columns.pop("utilisation")
    assert {len(column) for column in (*columns.values(), *utilisation.values())} == {SAMPLES_KEPT}
    assert set(utilisation) == {"pi-0", "pi-1", "pi-2", "pi-3", "pi-9"}
    assert utilisation["pi-9"].count(None) == 130 + 1, "before it was there, and once unheard"
    assert utilisation["pi-0"].count(None) == 1
