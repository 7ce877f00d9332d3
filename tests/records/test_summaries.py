"""What becomes of messages: rows of batches and pipeline, summaries of devices and stages."""

import random
from pathlib import Path

import numpy as np
import pytest

from client.records.collection import MAX_STAGES_KEPT, Collection
from client.records.csv_file import Row
from client.records.device_summary import DEVICE_COLUMNS
from client.records.profile_file import ProfileDocument, ProfileFile
from client.records.reservoir import KEPT, Reservoir
from client.records.rows import BATCH_COLUMNS, PIPELINE_COLUMNS, text
from client.records.stage_summary import STAGE_COLUMNS
from client.watch.state import MAX_CLIENTS, MAX_DEVICES
from contract import topics
from contract.errors import SettingsError
from contract.frozen import FrozenModel
from contract.metrics import DeviceMetrics, PipelineMetrics
from contract.plan import Plan
from contract.trace import TraceMetrics
from tests.pipeline.fakes import place_on
from tests.records.told import (
    EPOCH,
    as_json,
    batch_trace,
    delivered,
    device_metrics,
    pipeline_metrics,
    trace_metrics,
)
from tests.tiny import make_tiny_plan

CLUSTER = "home"


class Listener:
    """A collection that hears messages."""

    def __init__(self) -> None:
        self.collection = Collection(recorded_from_unix_s=1000.0)
        self._now = 1000.0

    def hear(self, *messages: FrozenModel) -> None:
        for message in messages:
            self._now += 1
            self.collection.take(delivered(topic_of(message), as_json(message)), self._now)

    def device(self, name: str = "pi-0") -> dict[str, object]:
        rows = [named(DEVICE_COLUMNS, row) for row in self.collection.device_rows()]
        return next(row for row in rows if row["device"] == name)

    def stages(self) -> list[dict[str, object]]:
        return [named(STAGE_COLUMNS, row) for row in self.collection.stage_rows()]

    def batches(self) -> list[dict[str, object]]:
        return [named(BATCH_COLUMNS, row) for row in self.collection.take_batch_rows()]

    def pipeline(self) -> list[dict[str, object]]:
        return [named(PIPELINE_COLUMNS, row) for row in self.collection.take_pipeline_rows()]


def topic_of(message: FrozenModel) -> str:
    match message:
        case Plan():
            return topics.plan_topic(CLUSTER)
        case DeviceMetrics():
            return topics.metrics_topic(CLUSTER, message.device)
        case PipelineMetrics():
            return topics.pipeline_metrics_topic(CLUSTER, message.client)
        case TraceMetrics():
            return topics.trace_topic(CLUSTER, message.client)
    raise TypeError(type(message))


def named(columns: Row, row: Row) -> dict[str, object]:
    return dict(zip(map(str, columns), row, strict=True))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_tiny_plan(tmp_path, cluster=CLUSTER)


def test_a_batch_is_a_row_whose_parts_add_up_to_its_latency(listener: Listener) -> None:
    listener.hear(trace_metrics(batch_trace(seq=3)))
    [row] = listener.batches()
    assert row["client"] == "client-a"
    assert (row["epoch"], row["seq"], row["attempt"], row["images"]) == (EPOCH, 3, 1, 8)
    assert row["queue_ms"] == 1.0
    assert (row["wait_ms"], row["compute_ms"], row["publish_ms"]) == (3.0, 12.0, 1.5)
    assert row["transfer_ms"] == 8.0
    parts = ("queue_ms", "transfer_ms", "wait_ms", "compute_ms", "publish_ms")
    assert sum(float(str(row[part])) for part in parts) == pytest.approx(row["latency_ms"])
    assert row["route"] == "pi-0;pi-1;pi-2"
    assert row["stage_compute_ms"] == "4.0;4.0;4.0"
    started = [float(value) for value in str(row["stage_started_unix_s"]).split(";")]
    assert started == [hop.started_us / 1e6 for hop in batch_trace(seq=3).hops]
    assert (row["bytes_in"], row["bytes_out"]) == (1200, 400)


def test_utilisation_so_far_is_the_computing_share_of_the_time_and_of_the_devices(
    listener: Listener,
) -> None:
    batches = [batch_trace(seq) for seq in range(50)]
    listener.hear(trace_metrics(*batches))
    rows = listener.batches()
    elapsed_us = batches[-1].received_us - batches[0].queued_us
    assert rows[-1]["utilisation"] == pytest.approx(50 * 12_000 / elapsed_us / 3, abs=1e-4)
    assert all(0 < float(str(row["utilisation"])) < 1 for row in rows)


def test_batches_without_a_trace_count_in_the_utilisation_and_are_told(listener: Listener) -> None:
    batches = [batch_trace(seq, every_us=40_000) for seq in range(2)]
    listener.hear(trace_metrics(*batches, omitted=2), pipeline_metrics())
    row = listener.batches()[-1]
    elapsed_us = batches[-1].received_us - batches[0].queued_us
    assert row["utilisation"] == pytest.approx(4 * 12_000 / elapsed_us / 3, abs=1e-4)
    assert listener.pipeline()[0]["untraced"] == 2


def test_every_client_and_every_plan_begin_anew(listener: Listener) -> None:
    late = batch_trace(seq=500)
    listener.hear(trace_metrics(batch_trace(seq=0)))
    listener.hear(trace_metrics(late, client="client-b"))
    listener.hear(trace_metrics(late, plan_id="f" * 16))
    first, other_client, other_plan = (row["utilisation"] for row in listener.batches())
    assert first == other_client == other_plan


@pytest.mark.parametrize(
    "changes",
    [
        {"route": ("pi-0", "../../etc", "pi-2")},
        {"route": ("=cmd()", "pi-1", "pi-2")},
        {"hops": batch_trace().hops[:2]},
        {"route": (), "hops": ()},
        {"epoch": "=1+1"},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_a_trace_that_makes_no_sense_is_counted_and_no_row(
    listener: Listener, changes: dict[str, object]
) -> None:
    listener.hear(trace_metrics(batch_trace(**changes), batch_trace(seq=1)))  # type: ignore[arg-type]
    assert [row["seq"] for row in listener.batches()] == [1]
    assert listener.collection.unsound == 1


def test_pipeline_metrics_are_a_row_field_by_field(listener: Listener) -> None:
    metrics = pipeline_metrics(tokens_per_s=57.5, first_token_ms=182.0, near_ties_total=2)
    listener.hear(metrics)
    [row] = listener.pipeline()
    flat = metrics.model_dump(exclude={"format_version", "stages", "ledger"})
    flat |= metrics.ledger.model_dump()
    assert {name: row[name] for name in flat} == flat
    assert row["stage_utilisation"] == "0.25;0.5;0.75"
    assert row["stage_bubble_s"] == "0.5;0.5;0.5"


def test_a_device_s_counters_are_what_they_grew_by_while_it_was_recorded(
    listener: Listener,
) -> None:
    listener.hear(
        device_metrics(uptime_s=100.0, batches_total=1000, bytes_in_total=50, reconnects_total=3),
        device_metrics(uptime_s=101.0, batches_total=1010, bytes_in_total=90, reconnects_total=3),
        device_metrics(uptime_s=0.5, batches_total=4, bytes_in_total=10, reconnects_total=0),
        device_metrics(uptime_s=1.5, batches_total=6, bytes_in_total=15, reconnects_total=1),
    )
    row = listener.device()
    assert row["batches"] == 10 + 4 + 2
    assert row["bytes_in"] == 40 + 10 + 5
    assert row["reconnects"] == 1
    assert row["starts"] == 2
    assert row["seconds"] == 1.0 + 0.5 + 1.0
    assert (row["first_heard_unix_s"], row["last_heard_unix_s"]) == (1001.0, 1004.0)


def test_a_start_is_noticed_though_the_agent_is_up_for_longer_than_when_it_was_last_heard(
    listener: Listener,
) -> None:
    listener.hear(
        device_metrics(uptime_s=10.0, batches_total=1000),
        device_metrics(uptime_s=60.0, batches_total=400),
    )
    row = listener.device()
    assert (row["starts"], row["batches"], row["seconds"]) == (2, 400, 60.0)


def test_a_slow_link_s_outputs_count_in_seconds_that_compute_nothing(listener: Listener) -> None:
    """They are acknowledged in another second than they are computed in."""
    listener.hear(device_metrics(uptime_s=1.0, batches_total=0))
    for second in range(2, 62, 2):
        computed = {"batches_total": second // 2, "compute_ms_mean": 100.0}
        listener.hear(
            device_metrics(uptime_s=second, publish_ms_mean=None, **computed),
            device_metrics(
                uptime_s=second + 1.0,
                batches_total=second // 2,
                compute_ms_mean=None,
                publish_ms_mean=1200.0,
            ),
        )
    row = listener.device()
    assert (row["compute_ms_mean"], row["publish_ms_mean"]) == (100.0, 1200.0)


def test_a_device_s_means_peaks_and_flags(listener: Listener) -> None:
    listener.hear(
        device_metrics(compute_ms_mean=99.0, utilisation=0.2, rss_bytes=100),
        device_metrics(
            uptime_s=11.0,
            batches_total=110,
            compute_ms_mean=4.0,
            utilisation=0.4,
            rss_bytes=300,
            memory_available_bytes=7,
            temperature_celsius=81.0,
            throttled=("throttled", "=HYPERLINK()"),
        ),
        device_metrics(
            uptime_s=12.0,
            batches_total=140,
            compute_ms_mean=8.0,
            utilisation=0.6,
            rss_bytes=200,
            temperature_celsius=None,
            throttled=("under_voltage_earlier",),
        ),
    )
    row = listener.device()
    assert row["compute_ms_mean"] == (10 * 4.0 + 30 * 8.0) / 40
    assert (row["utilisation_mean"], row["utilisation_max"]) == (0.4, 0.6)
    assert (row["memory_mean_bytes"], row["memory_peak_bytes"]) == (200, 300)
    assert row["memory_available_min_bytes"] == 7
    assert row["temperature_max_celsius"] == 81.0
    assert row["throttled"] == "throttled;under_voltage_earlier"


def test_percentiles_of_a_device_come_from_the_batches_that_went_through_it(
    listener: Listener,
) -> None:
    listener.hear(device_metrics("pi-1"))
    batches = [batch_trace(seq, compute_us=1_000 * (seq + 1)) for seq in range(100)]
    for first in range(0, 100, 50):
        listener.hear(trace_metrics(*batches[first : first + 50]))
    row = listener.device("pi-1")
    assert row["compute_ms_p50"] == pytest.approx(50.5)
    assert row["compute_ms_p95"] == pytest.approx(95.05)
    assert [device.device for device in listener.collection.devices] == ["pi-1"]


def test_a_stage_is_the_plan_s_and_what_batches_took_in_it(listener: Listener, plan: Plan) -> None:
    listener.hear(plan, trace_metrics(*map(batch_trace, range(4)), plan_id=plan.plan_id))
    listener.hear(pipeline_metrics(plan_id=plan.plan_id), pipeline_metrics(plan_id=plan.plan_id))
    rows = listener.stages()
    assert [row["stage_index"] for row in rows] == [0, 1, 2]
    for row, stage in zip(rows, plan.stages, strict=True):
        assert row["plan_id"] == plan.plan_id
        assert row["weight_bytes"] == stage.weight_bytes
        assert row["cut"] == stage.outputs[0].name
        assert row["bytes_in_per_batch"] == plan.edge_bytes(stage.stage_index, plan.batch_size)
        assert (row["batches"], row["images"]) == (4, 32)
        assert (row["compute_ms_mean"], row["compute_ms_p99"]) == (4.0, 4.0)
        assert (row["wait_ms_p50"], row["publish_ms_p95"]) == (1.0, 0.5)
    assert [row["devices"] for row in rows] == ["pi-0", "pi-1", "pi-2"]
    assert [row["utilisation_mean"] for row in rows] == [0.25, 0.5, 0.75]
    assert [row["bubble_s"] for row in rows] == [1.0, 1.0, 1.0]


def test_the_same_stages_on_other_devices_are_the_same_rows(listener: Listener, plan: Plan) -> None:
    listener.hear(plan, trace_metrics(batch_trace(), plan_id=plan.plan_id))
    listener.hear(place_on(plan, ("pi-0", "pi-8", "pi-2"), CLUSTER))
    listener.hear(trace_metrics(batch_trace(1), plan_id=plan.plan_id))
    assert [row["devices"] for row in listener.stages()] == ["pi-0", "pi-1;pi-8", "pi-2"]
    assert [row["batches"] for row in listener.stages()] == [2, 2, 2]


def test_times_of_an_unpublished_plan_make_no_stage(listener: Listener) -> None:
    listener.hear(trace_metrics(batch_trace()), pipeline_metrics())
    assert listener.stages() == []
    assert len(listener.batches()) == 1


def test_memory_is_bounded_whoever_sends_and_however_long(
    listener: Listener, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(MAX_DEVICES + 5):
        listener.hear(device_metrics(f"pi-{index}"))
    for index in range(MAX_CLIENTS + 5):
        listener.hear(trace_metrics(batch_trace(), client=f"client-{index}"))
    for index in range(MAX_DEVICES):
        route = tuple(f"pi-{stage}-of-{index}" for stage in range(3))
        listener.hear(trace_metrics(batch_trace(route=route), client="client-5"))
    monkeypatch.setattr("client.records.collection.MAX_STAGES_KEPT", 3)
    listener.hear(plan, plan.model_copy(update={"name": "again"}))
    collection = listener.collection
    assert len(collection.device_rows()) == MAX_DEVICES
    assert len(collection._feeds) == MAX_CLIENTS
    assert list(collection._feeds)[-2] == f"client-{MAX_CLIENTS + 4}"
    assert len(collection._feeds["client-5"].devices) == MAX_DEVICES
    assert len(collection.stage_rows()) == 3 <= MAX_STAGES_KEPT
    listener.batches()
    assert listener.batches() == []


def test_the_oldest_plan_makes_room(
    listener: Listener, tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.records.collection.MAX_STAGES_KEPT", 5)
    newer = make_tiny_plan(tmp_path, seed=1, name="newer", cluster=CLUSTER)
    listener.hear(plan, newer)
    assert {row["plan_id"] for row in listener.stages()} == {newer.plan_id}


def test_a_reservoir_is_exact_while_it_is_not_full_and_close_beyond() -> None:
    few, many = Reservoir(), Reservoir()
    values = [random.Random(5).lognormvariate(0, 1) for _ in range(1000)]
    for value in values:
        few.add(value)
    assert few.percentile(95) == pytest.approx(np.percentile(values, 95))
    for value in range(20 * KEPT):
        many.add(float(value))
    assert many.count == 20 * KEPT
    assert many.mean == (20 * KEPT - 1) / 2
    for percent in (50, 95):
        found = many.percentile(percent)
        assert found is not None
        assert abs(found / (20 * KEPT) * 100 - percent) < 4  # five standard deviations at 50
    assert len(many._sample) == KEPT
    assert (Reservoir().mean, Reservoir().percentile(50)) == (None, None)


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_text_of_others_is_no_formula_and_one_line(formula: str) -> None:
    assert text(formula) == f"'{formula}"
    assert text("line\nline\x1b[2J") == "line\\nline\\x1b[2J"
    assert len(text("x" * 10_000)) <= 201


def test_a_profile_has_the_plan_and_the_measured_times(
    listener: Listener, plan: Plan, tmp_path: Path
) -> None:
    listener.hear(plan, trace_metrics(batch_trace(), plan_id=plan.plan_id))
    file = tmp_path / "profile.json"
    profile = ProfileFile(file, CLUSTER, append=False)
    profile.replace(listener.collection, 2000.0)
    document = ProfileDocument.model_validate_json(file.read_bytes())
    [record] = document.plans
    assert (document.cluster, record.plan_id, record.digest) == (
        CLUSTER,
        plan.plan_id,
        plan.model.digest,
    )
    assert (record.recorded_from_unix_s, record.recorded_until_unix_s) == (1000.0, 2000.0)
    assert record.stages[1].compute_ms is not None
    assert record.stages[1].compute_ms.p50 == 4.0
    assert record.stages[1].devices == ("pi-1",)
    with pytest.raises(SettingsError, match="--append"):
        ProfileFile(file, CLUSTER, append=False)
    ProfileFile(file, CLUSTER, append=True).replace(listener.collection, 3000.0)
    document = ProfileDocument.model_validate_json(file.read_bytes())
    assert [record.recorded_until_unix_s for record in document.plans] == [2000.0, 3000.0]


def test_a_profile_without_a_batch_says_so(listener: Listener, plan: Plan, tmp_path: Path) -> None:
    listener.hear(plan)
    profile = ProfileFile(tmp_path / "profile.json", CLUSTER, append=False)
    profile.replace(listener.collection, 2000.0)
    document = ProfileDocument.model_validate_json((tmp_path / "profile.json").read_bytes())
    assert [stage.compute_ms for stage in document.plans[0].stages] == [None, None, None]


def test_another_file_is_not_taken_for_a_profile(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text('{"format_version": 1, "model": "x"}')
    with pytest.raises(SettingsError, match="not a file that"):
        ProfileFile(file, CLUSTER, append=True)
