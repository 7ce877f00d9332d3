"""Refusals, statuses, metrics and the view of the fleet: read back, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.activation import BatchId, Hop
from contract.errors import WireFormatError
from contract.fleet import FleetView, is_live
from contract.metrics import DeviceMetrics, Ledger, PipelineMetrics
from contract.nack import MAX_NACK_BYTES, POISONOUS, Nack, NackReason, parse_nack
from contract.placement import MAX_STAGES
from contract.plan import Plan
from contract.printable import printable
from contract.status import (
    MAX_STATUS_BYTES,
    Capabilities,
    DeviceState,
    DeviceStatus,
    Event,
    EventKind,
    ShardState,
    parse_status,
)
from contract.trace import BatchTrace, ClockOffset, TraceMetrics
from tests.tiny import make_tiny_plan

NACK = Nack(
    plan_id="0123456789abcdef",
    epoch="00000000deadbeef",
    seq=7,
    attempt=2,
    stage_index=1,
    route=("pi-0", "pi-1", "pi-2"),
    device="pi-1",
    reason=NackReason.INVALID,
    detail="why",
)
STATUS = DeviceStatus(
    device="pi-0",
    state=DeviceState.ONLINE,
    boot=2**53 - 1,
    shard=ShardState.READY,
    plan_id="0123456789abcdef",
    stage_index=0,
    capabilities=Capabilities(
        machine="aarch64",
        cores=4,
        memory_bytes=1,
        engine="onnxruntime",
        engine_version="1",
        shardline_version="0",
    ),
)


def test_a_refusal_is_read_back() -> None:
    assert parse_nack(NACK.model_dump_json().encode()) == NACK
    assert NACK.batch_id == BatchId(0xDEADBEEF, 7)


@pytest.mark.parametrize("reason", NackReason)
def test_every_reason_travels(reason: NackReason) -> None:
    nack = NACK.model_copy(update={"reason": reason})
    assert parse_nack(nack.model_dump_json().encode()).reason is reason


def test_the_reasons_that_lie_in_the_batch_are_the_ones_that_kill_it() -> None:
    assert {
        NackReason.ENGINE_FAILED,
        NackReason.INVALID,
        NackReason.POISON,
        NackReason.PUBLISH_REFUSED,
        NackReason.POISON,
    } == POISONOUS


def test_a_status_is_read_back() -> None:
    assert parse_status(STATUS.model_dump_json().encode()) == STATUS


MALFORMED: list[bytes] = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"hello",
    b"\xff\xfe",
    b"[" * 50_000,
    b"{" * 5_000,
]


def _variants(document: dict[str, Any], wrong: dict[str, list[Any]]) -> list[bytes]:
    found = []
    for field, values in wrong.items():
        found += [json.dumps({**document, field: value}).encode() for value in values]
    required = [
        field for field in ("device", "reason", "state", "boot", "epoch") if field in document
    ]
    for field in required:
        found.append(json.dumps({k: v for k, v in document.items() if k != field}).encode())
    found.append(json.dumps({**document, "shiny": 1}).encode())
    return found


BAD_NACKS = MALFORMED + _variants(
    json.loads(NACK.model_dump_json()),
    {
        "format_version": [0, 2, "1"],
        "epoch": ["", "0" * 15, "0" * 17, "G" * 16, "0" * 16 + "\n", 1],
        "seq": [-1, "1", 1.5, None],
        "attempt": [-1, "1"],
        "stage_index": [-1, None],
        "reason": ["", "bored", None, 1],
        "detail": ["x" * 2001, None],
        "device": [None, 1],
    },
)
BAD_STATUSES = MALFORMED + _variants(
    json.loads(STATUS.model_dump_json()),
    {
        "format_version": [0, 2],
        "state": ["", "asleep", None],
        "shard": ["", "half"],
        "boot": ["1", None, 1.5],
        "stage_index": ["0", 0.5],
        "capabilities": [{}, 1],
    },
)


@pytest.mark.parametrize("payload", BAD_NACKS, ids=range(len(BAD_NACKS)))
def test_what_is_no_refusal_is_refused(payload: bytes) -> None:
    with pytest.raises(WireFormatError, match="nack"):
        parse_nack(payload)


@pytest.mark.parametrize("payload", BAD_STATUSES, ids=range(len(BAD_STATUSES)))
def test_what_is_no_status_is_refused(payload: bytes) -> None:
    with pytest.raises(WireFormatError, match="status"):
        parse_status(payload)


@given(st.binary(max_size=200))
def test_random_bytes_are_neither(payload: bytes) -> None:
    for parse in (parse_nack, parse_status):
        with pytest.raises(WireFormatError):
            parse(payload)


def test_oversized_ones_are_refused_unread() -> None:
    with pytest.raises(WireFormatError, match="at most"):
        parse_nack(NACK.model_dump_json().encode() + b" " * MAX_NACK_BYTES)
    with pytest.raises(WireFormatError, match="at most"):
        parse_status(STATUS.model_dump_json().encode() + b" " * MAX_STATUS_BYTES)


@pytest.mark.parametrize("character", ["x", '"', "\\", "é", "\U0001f525", "\x01"])
def test_the_longest_detail_fits_into_a_refusal(character: str) -> None:
    """A stage cuts it at 2,000 characters; the client must be able to read what is left."""
    nack = NACK.model_copy(update={"detail": character * 2000, "route": ("a" * 63,) * 256})
    read = parse_nack(nack.model_dump_json().encode())
    assert read.detail == printable(character * 2000)[:2000]
    assert Nack.model_validate(dict(read)) == read  # and hand it on


def test_an_event_says_who_what_and_how_often() -> None:
    event = Event(
        kind=EventKind.DEVICE_LOST, sender="client-1", time_unix_s=1.5, detail="pi-0", count=3
    )
    assert json.loads(event.model_dump_json()) == {
        "format_version": 1,
        "kind": "device_lost",
        "sender": "client-1",
        "time_unix_s": 1.5,
        "detail": "pi-0",
        "count": 3,
    }


def test_the_metrics_fields_are_frozen() -> None:
    """`mosquitto_sub -t 'shardline/+/metrics/#'` is a supported interface: dashboards read it."""
    assert set(DeviceMetrics.model_fields) == {
        *("format_version", "device", "time_unix_s", "uptime_s", "plan_id", "stage_index", "shard"),
        *("batches_total", "images_total", "batches_per_s", "images_per_s"),
        *("compute_ms_mean", "wait_ms_mean", "publish_ms_mean", "utilisation", "queue_depth"),
        *("bytes_in_total", "bytes_out_total", "bytes_in_per_s", "bytes_out_per_s"),
        *("rejected_total", "nacks_total", "duplicates_total", "reconnects_total"),
        *("cpu_percent", "rss_bytes", "memory_available_bytes", "temperature_celsius"),
        *("throttled", "tokens_per_s", "cache_bytes", "cache_sequences", "cache_evictions_total"),
    }
    assert set(PipelineMetrics.model_fields) == {
        *("format_version", "client", "time_unix_s", "plan_id", "window"),
        *("batches_per_s", "images_per_s", "latency_ms_p50", "latency_ms_p95", "latency_ms_p99"),
        *("stages", "ledger", "tokens_per_s", "first_token_ms", "near_ties_total"),
    }
    assert set(TraceMetrics.model_fields) == {
        *("format_version", "client", "time_unix_s", "plan_id", "clocks", "batches", "omitted")
    }
    assert set(BatchTrace.model_fields) == {
        *("epoch", "seq", "attempt", "images", "queued_us", "sent_us", "received_us"),
        *("route", "hops", "bytes_in", "bytes_out"),
    }


TRACE = BatchTrace(
    epoch="00000000deadbeef",
    seq=7,
    attempt=0,
    images=8,
    queued_us=1,
    sent_us=2,
    received_us=9,
    route=("pi-0",),
    hops=(Hop(3, 4, 5, 6),),
)


def test_a_trace_is_read_back() -> None:
    clock = ClockOffset(device="pi-0", offset_us=-5, round_trip_us=3)
    told = TraceMetrics(
        client="me", time_unix_s=1.5, plan_id="0" * 16, clocks=(clock,), batches=(TRACE,)
    )
    again = TraceMetrics.model_validate_json(told.model_dump_json())
    assert again == told
    assert again.batches[0].hops[0].finished_us == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": -1},
        {"seq": 2**63},
        {"received_us": 10**30},
        {"queued_us": -(2**63)},
        {"hops": [[3, 4, 5, 10**400]]},
        {"hops": [[-1, 4, 5, 6]]},
        {"hops": [[3, 4, 5]]},
        {"route": ["pi"] * (MAX_STAGES + 1)},
        {"bytes_in": -1},
        {"forgotten": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_trace_of_times_without_end_is_refused(changes: dict[str, Any]) -> None:
    document = json.loads(TRACE.model_dump_json())
    assert BatchTrace.model_validate_json(json.dumps(document)) == TRACE
    with pytest.raises(ValidationError):
        BatchTrace.model_validate_json(json.dumps({**document, **changes}))


def test_a_ledger_with_an_unknown_field_is_refused() -> None:
    document = dict.fromkeys(Ledger.model_fields, 0)
    assert Ledger.model_validate_json(json.dumps(document)).lost == 0
    with pytest.raises(ValidationError):
        Ledger.model_validate_json(json.dumps({**document, "forgotten": 1}))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_tiny_plan(tmp_path_factory.mktemp("fleet"))


def _status(plan: Plan, **changes: Any) -> DeviceStatus:
    return STATUS.model_copy(update={"plan_id": plan.plan_id, **changes})


def test_a_device_is_live_when_online_and_ready_with_its_stage_of_this_plan(plan: Plan) -> None:
    assert is_live(_status(plan), plan)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": DeviceState.OFFLINE},
        {"state": DeviceState.STOPPED},
        {"shard": ShardState.LOADING},
        {"shard": ShardState.FAILED},
        {"shard": ShardState.IDLE},
        {"plan_id": "f" * 16},
        {"plan_id": None},
        {"stage_index": 1},
        {"stage_index": None},
        {"device": "stranger"},
    ],
    ids=repr,
)
def test_a_device_is_not_live_otherwise(plan: Plan, changes: dict[str, Any]) -> None:
    assert not is_live(_status(plan, **changes), plan)


def test_a_device_never_seen_is_not_live(plan: Plan) -> None:
    assert not is_live(None, plan)


def test_the_fleet_remembers_the_latest_status_and_tells_the_one_before(plan: Plan) -> None:
    fleet = FleetView()
    first, second = _status(plan), _status(plan, shard=ShardState.LOADING)
    assert fleet.update(first) is None
    assert fleet.update(second) == first
    assert fleet.get("pi-0") == second
    assert fleet.statuses() == [second]
    assert fleet.describe("pi-0") == "loading"
    assert fleet.describe("pi-9") == "not seen"
    fleet.update(_status(plan, state=DeviceState.OFFLINE))
    assert fleet.describe("pi-0") == "offline"


def test_the_fleet_tells_why_a_device_of_this_plan_failed(plan: Plan) -> None:
    fleet = FleetView()
    failed = {"shard": ShardState.FAILED, "error": "the weights are gone"}
    fleet.update(_status(plan, device="pi-1", plan_id="f" * 16, **failed))
    fleet.update(_status(plan, device="pi-2", state=DeviceState.OFFLINE, **failed))
    assert fleet.failure(plan) is None
    fleet.update(_status(plan, **failed))
    assert fleet.failure(plan) == "device pi-0: the weights are gone"


def test_statuses_of_several_devices_are_kept_apart(plan: Plan, tmp_path: Path) -> None:
    fleet = FleetView()
    fleet.update(_status(plan))
    fleet.update(_status(plan, device="pi-1", shard=ShardState.IDLE))
    assert {s.device: s.shard for s in fleet.statuses()} == {
        "pi-0": ShardState.READY,
        "pi-1": ShardState.IDLE,
    }
