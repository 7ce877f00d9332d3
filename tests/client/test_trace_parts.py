"""A batch's parts are in order, without gaps, sum to its latency, and are those that were made."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.perfetto import chrome_trace
from client.trace_parts import Part, PartKind, TimedBatch, decompose, summarise
from contract.activation import Hop
from contract.trace import BatchTrace, ClockOffset
from shardline.report.gantt import draw_gantt
from shardline.trace_table import document, parts_table, remarks
from tests.client.traces import AHEAD_US, DEVICES, LENGTHS, T0, batch, offsets, stream

ORDER = [
    (PartKind.QUEUE, None),
    *(
        (kind, stage)
        for stage in range(3)
        for kind in (PartKind.TRANSFER, PartKind.WAIT, PartKind.COMPUTE, PartKind.PUBLISH)
    ),
    (PartKind.TRANSFER, None),
]


def in_order(timed: TimedBatch) -> None:
    """The parts follow each other from submission to result, none of them backwards."""
    times = [timed.trace.queued_us]
    for part in timed.parts:
        assert part.begin_us == times[-1]
        assert part.end_us >= part.begin_us
        times.append(part.end_us)
    assert times[-1] == timed.trace.received_us
    assert sum(part.length_us for part in timed.parts) == timed.latency_us


def lengths(timed: TimedBatch) -> list[int]:
    return [part.length_us for part in timed.parts]


def test_with_the_right_clocks_each_part_has_its_length() -> None:
    found = decompose([batch()], offsets())
    [timed] = found.batches
    in_order(timed)
    assert lengths(timed) == list(LENGTHS)
    assert [(part.kind, part.stage_index) for part in timed.parts] == ORDER
    assert [part.device for part in timed.parts[1:5]] == ["pi-0"] * 4
    assert found.left_out == 0
    assert {clock.device: clock.offset_us for clock in found.clocks} == AHEAD_US


def test_a_transfer_is_as_certain_as_the_clocks_at_its_ends() -> None:
    told = [
        ClockOffset(device=name, offset_us=AHEAD_US[name], round_trip_us=round_trip)
        for name, round_trip in zip(DEVICES, (200, 600, 1000), strict=True)
    ]
    [timed] = decompose([batch()], told).batches
    transfers = [part for part in timed.parts if part.kind is PartKind.TRANSFER]
    assert [part.uncertainty_us for part in transfers] == [100, 100 + 300, 300 + 500, 500]
    assert {p.uncertainty_us for p in timed.parts if p.kind is not PartKind.TRANSFER} == {0}


@pytest.mark.parametrize("wrong_us", [-1100, 900])
def test_a_transfer_that_would_be_negative_takes_what_it_lacks_from_its_neighbour(
    wrong_us: int,
) -> None:
    """pi-1 lies between transfers of 1,500 and 800 us: this error makes one of them negative."""
    told = offsets(round_trip_us=0)
    told[1] = ClockOffset(
        device="pi-1", offset_us=AHEAD_US["pi-1"] - 2 * wrong_us, round_trip_us=4400
    )
    found = decompose([batch()], told)
    [timed] = found.batches
    in_order(timed)
    into, out = timed.parts[5].length_us, timed.parts[9].length_us
    assert into + out == LENGTHS[5] + LENGTHS[9]
    assert min(into, out) == 0
    moved = {clock.device: clock.moved_us for clock in found.clocks}
    assert moved["pi-1"] != 0
    assert {moved["pi-0"], moved["pi-2"]} == {0}
    assert any("moved by" in line for line in remarks(found))
    inner = [part.length_us for part in timed.parts if part.kind is not PartKind.TRANSFER]
    assert inner == [n for n, (kind, _) in zip(LENGTHS, ORDER, strict=True) if kind != "transfer"]


def test_one_clock_is_moved_alike_for_all_batches() -> None:
    """Else batches that a device computed one after the other would overlap in the picture."""
    told = offsets(wrong_us=1100, round_trip_us=2400)
    slow = (*LENGTHS[:1], 3000, *LENGTHS[2:])
    found = decompose([batch(0), batch(1, T0 + 9000, slow)], told)
    assert found.left_out == 0
    for timed in found.batches:
        in_order(timed)
    first, second = ([p for p in t.parts if p.kind is PartKind.COMPUTE] for t in found.batches)
    apart = 9000 + 2000
    assert [b.begin_us - a.begin_us for a, b in zip(first, second, strict=True)] == [apart] * 3


def test_a_batch_in_whose_time_a_clock_was_set_is_left_out_and_the_others_stay_right() -> None:
    traces = stream(6)
    jumped = (
        traces[3]
        .hops[1]
        ._replace(**{name: time + 10**7 for name, time in traces[3].hops[1]._asdict().items()})
    )
    traces[3] = traces[3].model_copy(
        update={"hops": (traces[3].hops[0], jumped, traces[3].hops[2])}
    )
    found = decompose(traces, offsets())
    assert found.left_out == 1
    assert [timed.trace.seq for timed in found.batches] == [0, 1, 2, 4, 5]
    for timed in found.batches:
        assert lengths(timed) == list(LENGTHS)
    assert any("1 batch left out" in line for line in remarks(found))


def test_without_measured_clocks_the_batches_themselves_bound_them() -> None:
    found = decompose(stream(4), [])
    assert found.left_out == 0
    for timed in found.batches:
        in_order(timed)
        inner = [p.length_us for p in timed.parts if p.kind is not PartKind.TRANSFER]
        assert sum(inner) == sum(LENGTHS) - 1000 - 1500 - 800 - 1200
    assert not any(clock.is_measured for clock in found.clocks)
    for clock in found.clocks:
        assert abs(clock.offset_us - AHEAD_US[clock.device]) <= clock.uncertainty_us
    assert any("has not said what its time is" in line for line in remarks(found))


def test_a_trace_that_does_not_tell_of_every_stage_is_left_out() -> None:
    whole = batch()
    short = whole.model_copy(update={"hops": whole.hops[:2]})
    backwards = whole.model_copy(update={"sent_us": whole.queued_us - 1})
    twice = whole.model_copy(update={"route": ("pi-0", "pi-0", "pi-2")})
    nothing = whole.model_copy(update={"hops": (), "route": ()})
    found = decompose([short, backwards, twice, nothing, whole], offsets())
    assert (len(found.batches), found.left_out) == (1, 4)


def test_the_summary_has_medians_shares_and_all_replicas() -> None:
    traces = stream(3)
    other = traces[2].model_copy(update={"route": ("pi-0", "pi-9", "pi-2")})
    told = [*offsets(), ClockOffset(device="pi-9", offset_us=-7_000_000, round_trip_us=100)]
    slow = (*LENGTHS[:3], 15_000, *LENGTHS[4:])
    found = decompose([traces[0], batch(1, T0 + 50_000, slow), other], told)
    rows = summarise(found.batches)
    assert [(row.kind, row.stage_index) for row in rows] == ORDER
    assert [row.median_us for row in rows] == list(LENGTHS)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert rows[7].devices == ("pi-1", "pi-9")
    assert rows[0].devices == ()
    told_of = document(found, "me")
    assert told_of["parts"][3]["part"] == "compute"
    assert told_of["sum_of_medians_ms"] == sum(LENGTHS) / 1000 == told_of["median_latency_ms"]
    assert told_of["sum_of_means_ms"] == pytest.approx(told_of["mean_latency_ms"], abs=0.002)
    assert told_of["mean_latency_ms"] > told_of["median_latency_ms"]
    assert told_of["largest_difference_ms"] == 0
    assert parts_table(found, "me").row_count == len(ORDER) + 3


times = st.integers(1 - 2**63, 2**63 - 1) | st.integers(0, 50)
quartets = st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 50), min_size=4, max_size=4)
hops = quartets.map(lambda t: Hop(*t)) | quartets.map(lambda t: Hop(*sorted(t)))
words = st.sampled_from([*DEVICES, "", "<b>", "\x1b[2J", "[red]x[/]", "{0}", "a" * 300])
liars = st.builds(
    BatchTrace,
    epoch=words,
    seq=st.integers(0, 2**63 - 1),
    attempt=st.just(0),
    images=st.just(1),
    queued_us=times,
    sent_us=times,
    received_us=times,
    route=st.lists(words, max_size=4).map(tuple),
    hops=st.lists(hops, max_size=4).map(tuple),
)
lies = st.builds(
    ClockOffset, device=words, offset_us=times, round_trip_us=st.integers(0, 2**63 - 1)
)


@given(traces=st.lists(liars, max_size=4), told=st.lists(lies, max_size=4))
@settings(max_examples=200, deadline=None)
def test_whatever_a_client_tells_parts_are_in_order_and_everything_can_be_drawn(
    traces: list[BatchTrace], told: list[ClockOffset]
) -> None:
    found = decompose([*traces, batch()], [*told, *offsets()])
    for timed in found.batches:
        in_order(timed)
    assert len(found.batches) + found.left_out == len(traces) + 1
    if found.batches:
        chrome_trace(found.batches, "me")
        draw_gantt(found.batches, "model")
        document(found, "me")


def test_a_part_knows_its_length() -> None:
    assert Part(PartKind.WAIT, 0, "pi-0", 5, 9).length_us == 4
