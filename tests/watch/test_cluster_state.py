"""What a watcher keeps of a cluster: bounded whoever sends, believed no longer than it holds."""

import json
from pathlib import Path

import pytest

from client.watch.kept import RECENT_S
from client.watch.state import (
    CONFIRM_WITHIN_S,
    EVENTS_KEPT,
    FORGET_AFTER_S,
    HISTORY,
    KEPT_BYTES,
    MAX_CLIENTS,
    MAX_DEVICES,
    MAX_EVENT_BYTES,
    MAX_METRICS_BYTES,
    MAX_TRACE_BYTES,
    TRACES_KEPT,
)
from client.watch.view import STALE_AFTER_S
from contract import topics
from contract.activation import Hop
from contract.plan import MAX_PLAN_BYTES
from contract.status import MAX_STATUS_BYTES, DeviceState, EventKind
from contract.trace import MAX_TRACED, BatchTrace, ClockOffset, TraceMetrics
from tests.watch.cluster import (
    CLUSTER,
    Cluster,
    delivery,
    device_metrics,
    device_status,
    pipeline_metrics,
    plan_on,
)

STAGES = [["pi-0"], ["pi-1"], ["pi-2"]]


def trace_message(client: str, first: int, count: int) -> str:
    hops = tuple(
        Hop(
            received_us=1_000_000 + index,
            started_us=1_000_100,
            finished_us=1_000_200,
            sent_us=1_000_300,
        )
        for index in range(3)
    )
    batches = tuple(
        BatchTrace(
            epoch="7",
            seq=seq,
            attempt=1,
            images=8,
            queued_us=1,
            sent_us=2,
            received_us=3,
            route=("pi-0", "pi-1", "pi-2"),
            hops=hops,
        )
        for seq in range(first, first + count)
    )
    clocks = (ClockOffset(device="pi-0", offset_us=12, round_trip_us=400),)
    return TraceMetrics(
        client=client, time_unix_s=1.0, plan_id="0" * 16, clocks=clocks, batches=batches
    ).model_dump_json()


def test_a_view_holds_what_plan_devices_clients_and_broker_say(tmp_path: Path) -> None:
    plan = plan_on(tmp_path, STAGES)
    cluster = Cluster(plan)
    assert cluster.online("pi-0")
    assert cluster.metrics("pi-0", utilisation=0.5)
    assert cluster.metrics("pi-0", utilisation=0.7)
    assert cluster.feeds("client-1")
    assert cluster.event("pi-0", EventKind.SHARD_READY, "stage 0 of plan x")
    assert cluster.state.take(
        delivery(topics.trace_topic(CLUSTER, "client-1"), trace_message("client-1", 5, 2))
    )
    assert cluster.state.take(delivery(topics.BROKER_UPTIME, "123 seconds", True))
    assert cluster.state.take(delivery(topics.BROKER_CLIENTS, "7", True))
    cluster.clock.now += 2
    view = cluster.view()
    assert view.is_connected
    assert view.plan == plan.model_copy(update={"segments": (), "verdict": None})
    device = view.device("pi-0")
    assert device is not None
    assert device.is_online
    assert device.is_fresh
    assert device.metrics_age_s == pytest.approx(2)
    assert [metrics.utilisation for metrics in device.history] == [0.5, 0.7]
    assert device.metrics is device.history[-1]
    (pipeline,) = view.pipelines
    assert pipeline.is_fresh
    assert pipeline.metrics.ledger.submitted == 834
    assert [batch.seq for batch in pipeline.traces] == [5, 6]
    assert pipeline.clocks[0].offset_us == 12
    assert [event.detail for event in view.events] == ["stage 0 of plan x"]
    assert (view.broker.uptime_s, view.broker.clients_connected) == (123, 7)
    assert view.stage_devices(1) == ("pi-1",)
    assert view.stage_devices(3) == view.stage_devices(-1) == ()
    assert view.device("pi-7") is None
    assert view.ignored == 0


def test_figures_go_stale_when_nobody_sends_them_any_more(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, STAGES))
    cluster.online("pi-0")
    cluster.metrics("pi-0")
    cluster.feeds("client-1")
    cluster.clock.now += STALE_AFTER_S + 0.1
    view = cluster.view()
    assert not view.devices[0].is_fresh
    assert view.devices[0].is_online
    assert not view.pipelines[0].is_fresh


def test_a_retired_plan_and_a_cleared_status_are_gone(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, STAGES))
    cluster.online("pi-0")
    assert cluster.state.take(delivery(topics.plan_topic(CLUSTER), b""))
    assert cluster.state.take(delivery(topics.status_topic(CLUSTER, "pi-0"), b""))
    assert cluster.state.take(delivery(topics.status_topic(CLUSTER, "never-seen"), b""))
    view = cluster.view()
    assert view.plan is None
    assert view.devices == ()
    assert view.stage_devices(0) == ()


def hostile_messages() -> list[tuple[str, str, bytes | str]]:
    status, metrics = topics.status_topic(CLUSTER, "pi-0"), topics.metrics_topic(CLUSTER, "pi-0")
    pipeline = topics.pipeline_metrics_topic(CLUSTER, "client-1")
    trace = topics.trace_topic(CLUSTER, "client-1")
    event = topics.event_topic(CLUSTER, "pi-0")
    good = json.loads(device_metrics("pi-0").model_dump_json())
    fed = json.loads(pipeline_metrics("client-1", "0" * 16).model_dump_json())
    stage = fed["stages"][0] | {"stage_index": 10**6}
    told = {"kind": "device_lost", "sender": "pi-0", "time_unix_s": 1.0, "detail": "x"}
    away = topics.metrics_topic("away", "pi-0")
    return [
        ("a status of another device", status, device_status("pi-9").model_dump_json()),
        ("a status that is none", status, b"\xff\x00{"),
        ("a status too long", status, b" " * (MAX_STATUS_BYTES + 1)),
        ("metrics of another device", metrics, device_metrics("pi-9").model_dump_json()),
        ("metrics that are none", metrics, "{}"),
        ("metrics with a field of nobody's", metrics, json.dumps(good | {"x": 1})),
        ("metrics too long", metrics, json.dumps(good) + " " * MAX_METRICS_BYTES),
        ("metrics of no number", metrics, json.dumps(good | {"utilisation": 1e400})),
        ("metrics of a huge number", metrics, json.dumps(good | {"rss_bytes": 10**400})),
        ("metrics whose sums overflow", metrics, json.dumps(good | {"cpu_percent": 1.7e308})),
        ("metrics of a stage below 0", metrics, json.dumps(good | {"stage_index": -1})),
        ("metrics nested without end", metrics, "[" * 20_000),
        ("metrics of another client", pipeline, json.dumps(fed | {"client": "client-2"})),
        ("a pipeline of a huge stage", pipeline, json.dumps(fed | {"stages": [stage]})),
        ("pipeline metrics too long", pipeline, json.dumps(fed) + " " * MAX_METRICS_BYTES),
        ("a trace of another client", trace, trace_message("client-2", 0, 1)),
        ("a trace too long", trace, trace_message("client-1", 0, 1) + " " * MAX_TRACE_BYTES),
        ("an event of another", event, json.dumps(told | {"sender": "pi-9"})),
        ("an event of no kind", event, json.dumps(told | {"kind": "x"})),
        ("an event too long", event, b" " * (MAX_EVENT_BYTES + 1)),
        ("a plan that is none", topics.plan_topic(CLUSTER), "{}"),
        ("a plan too long", topics.plan_topic(CLUSTER), b" " * (MAX_PLAN_BYTES + 1)),
        ("another cluster", away, device_metrics("pi-0").model_dump_json()),
        ("a topic of nobody's", "a/b/c", "x"),
        ("a topic without end", "a" * 60_000, "x"),
        ("a counter that is no number", topics.BROKER_UPTIME, "soon"),
        ("a counter without end", topics.BROKER_CLIENTS, "9" * 30),
        ("a message that is not for watchers", topics.nack_topic(CLUSTER, "c", "pi-0"), "{}"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("topic", "payload"),
    [pytest.param(topic, payload, id=name) for name, topic, payload in hostile_messages()],
)
def test_what_is_malformed_or_speaks_for_others_is_counted_and_changes_nothing(
    topic: str, payload: bytes | str
) -> None:
    cluster = Cluster()
    cluster.online("pi-0")
    before = cluster.view()
    assert not cluster.state.take(delivery(topic, payload))
    after = cluster.view()
    assert (after.ignored, before.ignored) == (1, 0)
    assert (after.devices, after.pipelines, after.events) == (before.devices, (), ())
    assert (after.plan, after.broker) == (None, before.broker)


def test_the_same_messages_are_taken_when_they_are_as_they_should_be() -> None:
    """The control of the table above."""
    cluster = Cluster()
    good = device_metrics("pi-0").model_dump_json()
    assert cluster.state.take(delivery(topics.metrics_topic(CLUSTER, "pi-0"), good + " " * 100))
    fed = pipeline_metrics("client-1", "0" * 16).model_dump_json()
    assert cluster.state.take(delivery(topics.pipeline_metrics_topic(CLUSTER, "client-1"), fed))


@pytest.mark.parametrize("kind", ["metrics", "pipeline", "trace", "event"])
def test_what_somebody_left_retained_is_not_taken_for_the_present(kind: str) -> None:
    topic, payload = {
        "metrics": (
            topics.metrics_topic(CLUSTER, "pi-0"),
            device_metrics("pi-0").model_dump_json(),
        ),
        "pipeline": (
            topics.pipeline_metrics_topic(CLUSTER, "c"),
            pipeline_metrics("c", "0" * 16).model_dump_json(),
        ),
        "trace": (topics.trace_topic(CLUSTER, "c"), trace_message("c", 0, 1)),
        "event": (
            topics.event_topic(CLUSTER, "c"),
            json.dumps({"kind": "batch_dead", "sender": "c", "time_unix_s": 1.0, "detail": "x"}),
        ),
    }[kind]
    cluster = Cluster()
    assert not cluster.state.take(delivery(topic, payload, retained=True))
    assert cluster.state.take(delivery(topic, payload))


def test_history_events_and_traces_have_an_end(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, STAGES))
    for number in range(HISTORY + 20):
        cluster.metrics("pi-0", batches_total=number)
        cluster.feeds("client-1", window=number + 1)
    for number in range(EVENTS_KEPT + 20):
        cluster.event("pi-0", EventKind.SHARD_READY, str(number))
    for number in range(TRACES_KEPT // MAX_TRACED + 2):
        message = trace_message("client-1", number * MAX_TRACED, MAX_TRACED)
        assert cluster.state.take(delivery(topics.trace_topic(CLUSTER, "client-1"), message))
    view = cluster.view()
    totals = [metrics.batches_total for metrics in view.devices[0].history]
    assert totals == list(range(20, HISTORY + 20))
    assert len(view.pipelines[0].history) == HISTORY
    assert view.pipelines[0].metrics.window == HISTORY + 20
    assert [event.detail for event in view.events] == [
        str(number) for number in range(20, EVENTS_KEPT + 20)
    ]
    traces = view.pipelines[0].traces
    assert len(traces) == TRACES_KEPT
    assert traces[-1].seq == (TRACES_KEPT // MAX_TRACED + 2) * MAX_TRACED - 1


def test_large_messages_are_kept_no_longer_than_their_bytes_allow() -> None:
    cluster = Cluster()
    flags = tuple("x" * 1900 for _ in range(30))
    size = len(device_metrics("pi-0", throttled=flags).model_dump_json())
    assert 50_000 < size < MAX_METRICS_BYTES
    for number in range(HISTORY):
        assert cluster.metrics("pi-0", throttled=flags, batches_total=number)
    history = cluster.view().devices[0].history
    assert len(history) == KEPT_BYTES // size
    assert history[-1].batches_total == HISTORY - 1


def test_names_without_end_displace_no_device_that_has_a_status() -> None:
    cluster = Cluster()
    for number in range(MAX_DEVICES - 1):
        assert cluster.online(f"pi-{number}")
    for number in range(20):
        cluster.clock.now += 1
        assert cluster.metrics(f"stranger-{number}")  # each in place of the one before
    names = {device.name for device in cluster.view().devices}
    assert len(names) == MAX_DEVICES
    assert {name for name in names if name.startswith("stranger")} == {"stranger-19"}
    assert cluster.online("pi-late")
    assert not cluster.online("pi-one-too-many")
    assert cluster.metrics("pi-0")
    assert len(cluster.view().devices) == MAX_DEVICES


def test_of_too_many_clients_the_one_unheard_longest_goes(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, STAGES))
    for number in range(MAX_CLIENTS):
        cluster.clock.now += 0.01
        cluster.feeds(f"client-{number}")
    cluster.clock.now += 0.01
    cluster.feeds("client-0")
    cluster.feeds("client-new")
    names = {pipeline.client for pipeline in cluster.view().pipelines}
    assert len(names) == MAX_CLIENTS
    assert {"client-0", "client-new"} <= names
    assert "client-1" not in names


def test_clients_and_strangers_that_have_left_are_forgotten(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, STAGES))
    cluster.feeds("client-1")
    cluster.metrics("stranger")
    cluster.online("pi-0")
    cluster.clock.now += FORGET_AFTER_S + 1
    view = cluster.view()
    assert view.pipelines == ()
    assert [device.name for device in view.devices] == ["pi-0"]


@pytest.mark.parametrize("state", [DeviceState.OFFLINE, DeviceState.STOPPED])
def test_a_late_word_of_an_earlier_start_does_not_unmake_a_newer_birth(state: DeviceState) -> None:
    cluster = Cluster()
    cluster.online("pi-0", boot=1)
    cluster.online("pi-0", boot=2)
    assert not cluster.status(device_status("pi-0", state=state, boot=1))
    assert cluster.view().devices[0].is_online
    assert cluster.status(device_status("pi-0", state=state, boot=2))
    assert not cluster.view().devices[0].is_online


def test_a_device_comes_back_with_a_new_boot_and_its_history_goes_on() -> None:
    cluster = Cluster()
    cluster.online("pi-0", boot=1)
    cluster.metrics("pi-0", batches_total=500)
    cluster.status(device_status("pi-0", state=DeviceState.OFFLINE, boot=1))
    assert not cluster.view().devices[0].is_online
    cluster.online("pi-0", boot=2)
    cluster.metrics("pi-0", batches_total=3)
    (device,) = cluster.view().devices
    assert device.is_online
    assert [metrics.batches_total for metrics in device.history] == [500, 3]


def test_what_the_broker_retains_counts_even_of_a_start_that_was_never_seen() -> None:
    """While we were away the device started anew, and died."""
    cluster = Cluster()
    cluster.online("pi-0", boot=1)
    cluster.state.set_connected(False)
    cluster.state.set_connected(True)
    assert cluster.status(device_status("pi-0", state=DeviceState.OFFLINE, boot=2), retained=True)
    assert not cluster.view().devices[0].is_online


def test_the_connection_is_told_with_its_age() -> None:
    cluster = Cluster()
    cluster.clock.now += 3
    assert cluster.view().connection_age_s == pytest.approx(3)
    cluster.state.set_connected(False)
    cluster.state.set_connected(False)  # the same loss
    cluster.clock.now += 12
    view = cluster.view()
    assert not view.is_connected
    assert view.connection_age_s == pytest.approx(12)


def test_after_a_lost_connection_only_what_is_spoken_of_again_stays(tmp_path: Path) -> None:
    """The broker has forgotten everything, and pi-1 never comes back."""
    cluster = Cluster(plan_on(tmp_path, STAGES))
    for name in ("pi-0", "pi-1", "pi-2"):
        cluster.online(name)
    cluster.clock.now += 60
    cluster.state.set_connected(False)
    cluster.clock.now += 60
    assert len(cluster.view().devices) == 3  # what was last heard stays in sight meanwhile
    cluster.state.set_connected(True)
    cluster.online("pi-0")
    cluster.clock.now += CONFIRM_WITHIN_S - 1
    assert len(cluster.view().devices) == 3
    cluster.metrics("pi-2")  # it goes on with the plan, which the broker has lost
    cluster.clock.now += 2
    view = cluster.view()
    assert [device.name for device in view.devices] == ["pi-0", "pi-2"]
    assert view.plan is not None


def test_a_plan_that_nobody_speaks_of_after_a_lost_connection_is_gone(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, STAGES))
    cluster.state.set_connected(False)
    cluster.state.set_connected(True)
    cluster.metrics("pi-0", plan_id="f" * 16)
    cluster.clock.now += CONFIRM_WITHIN_S + 1
    assert cluster.view().plan is None


def test_rates_of_the_broker_are_of_its_own_messages_and_of_now() -> None:
    cluster = Cluster()

    def received(total: int, retained: bool = False) -> float | None:
        message = delivery(topics.BROKER_BYTES_RECEIVED, str(total), retained)
        assert cluster.state.take(message)
        return cluster.view().broker.bytes_received_per_s

    assert received(1_000, retained=True) is None  # of any age
    cluster.clock.now += 4
    assert received(5_000) is None
    cluster.clock.now += 10
    assert received(25_000) == pytest.approx(2_000)
    cluster.clock.now += RECENT_S + 1
    assert cluster.view().broker.bytes_received_per_s is None
    assert cluster.view().broker.bytes_received == 25_000
    assert received(10) is None  # started again
    cluster.clock.now += 10
    assert received(110) == pytest.approx(10)
    cluster.state.set_connected(False)
    cluster.state.set_connected(True)
    assert cluster.view().broker.bytes_received is None


def test_dropped_messages_are_told_as_long_as_they_are_news() -> None:
    cluster = Cluster()
    cluster.state.take(delivery(topics.BROKER_DROPPED, "40", True))
    assert cluster.view().broker.messages_dropped_recently == 0
    cluster.clock.now += 10
    cluster.state.take(delivery(topics.BROKER_DROPPED, "52"))
    assert cluster.view().broker.messages_dropped_recently == 12
    cluster.clock.now += RECENT_S + 1
    broker = cluster.view().broker
    assert (broker.messages_dropped, broker.messages_dropped_recently) == (52, 0)
