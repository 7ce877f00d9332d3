"""The Chrome trace follows the format's rules, and says what the batches say."""

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from client.perfetto import chrome_trace
from client.trace_parts import decompose
from tests.client.traces import DEVICES, LENGTHS, T0, batch, offsets, stream

COUNT = 8


@pytest.fixture(scope="module")
def trace() -> dict[str, Any]:
    found = decompose(stream(COUNT), offsets())
    read: dict[str, Any] = json.loads(json.dumps(chrome_trace(found.batches, "client-a")))
    return read


def events(trace: dict[str, Any], *phases: str) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] in phases]


def test_events_are_sorted_and_have_the_fields_that_their_phase_needs(
    trace: dict[str, Any],
) -> None:
    told = events(trace, "X", "s", "t", "f")
    assert [e["ts"] for e in told] == sorted(e["ts"] for e in told)
    assert len(told) + len(events(trace, "M")) == len(trace["traceEvents"])
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
    for event in events(trace, "X"):
        assert event["ts"] >= 0
        assert event["dur"] > 0
    for event in events(trace, "s", "t", "f"):
        assert isinstance(event["id"], int)  # Perfetto: else "flow_invalid_id"
        assert event["id"] > 0
        assert event["cat"]
    assert all(event["bp"] == "e" for event in events(trace, "f"))


def test_every_process_and_thread_has_a_name(trace: dict[str, Any]) -> None:
    names = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in events(trace, "M")
        if e["name"] == "thread_name"
    }
    assert {(e["pid"], e["tid"]) for e in events(trace, "X")} == set(names)
    assert {name.split()[0] for name in names.values()} == {
        *("queue", "transfer", "wait", "compute", "publish")
    }
    processes = {e["args"]["name"] for e in events(trace, "M") if e["name"] == "process_name"}
    assert processes == {"client client-a", *(f"stage {i}: {d}" for i, d in enumerate(DEVICES))}
    tids = [tid for _, tid in names]
    assert len(set(tids)) == len(tids)


def test_slices_of_one_thread_do_not_overlap(trace: dict[str, Any]) -> None:
    threads = defaultdict(list)
    for event in events(trace, "X"):
        threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in threads.values():
        assert all(end <= begin for (_, end), (begin, _) in pairwise(sorted(slices)))
    computes = [e for e in events(trace, "M") if e["args"].get("name", "").startswith("compute")]
    assert len(computes) == 3  # a device computes one batch at a time: one thread suffices
    transfers = [e for e in events(trace, "M") if e["args"].get("name") == "transfer 2"]
    assert transfers == []


def test_batches_that_overlap_get_threads_of_their_own() -> None:
    crowd = [batch(seq, T0 + seq * 10) for seq in range(5)]
    made = chrome_trace(decompose(crowd, offsets()).batches, "me")
    lanes = {e["tid"] for e in events(made, "X") if e["name"].startswith("compute")}
    assert len(lanes) == 3 * 5


def test_every_arrow_begins_and_ends_and_each_point_lies_in_a_slice_before_it(
    trace: dict[str, Any],
) -> None:
    arrows = defaultdict(list)
    batch_of_arrow: dict[int, str] = {}
    open_slices: dict[tuple[int, int], dict[str, Any]] = {}
    for event in trace["traceEvents"]:
        place = (event["pid"], event["tid"])
        if event["ph"] == "X":
            open_slices[place] = event
        elif event["ph"] in "stf":
            around = open_slices[place]
            assert around["ts"] <= event["ts"] < around["ts"] + around["dur"]
            assert around["args"]["batch"] == batch_of_arrow.setdefault(
                event["id"], around["args"]["batch"]
            )
            arrows[event["id"]].append(event)
    assert len(arrows) == len(set(batch_of_arrow.values())) == COUNT
    for points in arrows.values():
        assert "".join(event["ph"] for event in points) == "sttttf"[: len(points) - 1] + "f"
        assert len(points) == 5  # the client, three devices, the client
        assert len({event["pid"] for event in points}) == 4


def test_the_slices_of_a_batch_sum_to_its_latency(trace: dict[str, Any]) -> None:
    sums: dict[str, int] = defaultdict(int)
    for event in events(trace, "X"):
        sums[event["args"]["batch"]] += event["dur"]
    assert set(sums.values()) == {sum(LENGTHS)}
    assert trace["otherData"] == {"client": "client-a", "begin_unix_us": str(T0)}
    first = events(trace, "X")[0]
    assert (first["name"], first["ts"], first["dur"]) == ("queue 0", 0, LENGTHS[0])


def test_no_batch_gives_an_empty_trace_that_can_be_read() -> None:
    assert chrome_trace((), "me")["traceEvents"] == []
