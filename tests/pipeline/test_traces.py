"""A client tells where its batches' time went: real stages, Mosquitto, an observer."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.transport import Connect
from client.batch import Batch, BatchResult
from client.journal import Journal
from client.pipeline import Pipeline
from client.settings import ClientSettings
from client.trace_parts import PartKind, decompose
from client.tracer import MAX_HOPS, trace_metrics
from client.watch.observer import Observer
from client.watch.state import MAX_TRACE_BYTES
from contract import topics
from contract.activation import Activation, BatchId, Hop
from contract.nack import NackReason
from contract.placement import MAX_STAGES
from contract.plan import Plan
from contract.topics import MAX_NAME
from contract.trace import MAX_TRACED, ClockOffset, TraceMetrics
from tests.conftest import StartStage, eventually
from tests.pipeline.fakes import FakeDevice, make_batches, publish_plan
from tests.stage.harness import Listener
from tests.tiny import make_tiny_plan

COUNT = 8


@pytest.fixture
def plan(
    tmp_path: Path, connect: Connect, cluster: str, unique: str, start_stage: StartStage
) -> Plan:
    """Published, with three stages that serve it."""
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    return plan


def settings(cluster: str, unique: str, **changes: object) -> ClientSettings:
    return ClientSettings(name=f"client-{unique}", cluster=cluster, **changes)  # type: ignore[arg-type]


def paced(batches: list[Batch]) -> Iterator[Batch]:
    """Batches with pauses, so that messages come between them and clocks are asked."""
    for batch in batches:
        time.sleep(0.05)
        yield batch


def test_the_parts_of_each_batch_sum_to_the_latency_that_was_measured(
    plan: Plan, connect: Connect, cluster: str, unique: str
) -> None:
    with (
        Observer(connect, cluster, f"observer-{unique}") as observer,
        Pipeline(settings(cluster, unique), connect) as pipeline,
    ):
        pipeline.open()
        results = list(pipeline.run(paced(make_batches(COUNT))))

        def told() -> bool:
            pipelines = observer.view().pipelines
            return bool(pipelines) and len(pipelines[0].traces) == COUNT

        eventually(told, "the observer has every batch")
        [view] = observer.view().pipelines
    devices = {replica.device for spot in plan.placement for replica in spot.replicas}
    assert {clock.device for clock in view.clocks} == devices
    found = decompose(view.traces, view.clocks)
    assert (len(found.batches), found.left_out) == (COUNT, 0)
    latencies = {r.batch_id.seq: r.latency_ms for r in results if isinstance(r, BatchResult)}
    for timed in found.batches:
        assert len(timed.parts) == 2 + 4 * plan.num_stages
        assert all(part.length_us >= 0 for part in timed.parts)
        sum_ms = sum(part.length_us for part in timed.parts) / 1000
        assert sum_ms == pytest.approx(latencies[timed.trace.seq], rel=0.02)
        assert timed.trace.bytes_in > 0 < timed.trace.bytes_out
        computed = [part for part in timed.parts if part.kind is PartKind.COMPUTE]
        assert [part.device for part in computed] == list(timed.trace.route)
    for clock in found.clocks:  # the same machine's clock
        assert abs(clock.offset_us) <= clock.uncertainty_us + abs(clock.moved_us)


def test_without_traces_nothing_is_asked_and_nothing_told(
    plan: Plan, connect: Connect, cluster: str, unique: str
) -> None:
    name = f"client-{unique}"
    devices = [replica.device for spot in plan.placement for replica in spot.replicas]
    ears = [topics.trace_topic(cluster, name), *(topics.clock_filter(cluster, d) for d in devices)]
    ear = Listener(connect, f"ear-{unique}", *ears)
    for traces in (False, True):
        with Pipeline(settings(cluster, unique, traces=traces), connect) as pipeline:
            pipeline.open()
            list(pipeline.run(make_batches(COUNT)))
        if traces:
            eventually(lambda: {d.topic for d in ear.heard} >= {ears[0]}, "now it is told")
            assert any(topics.parse_topic(d.topic).kind == "clock" for d in ear.heard)
        else:
            assert ear.heard == []
    ear.close()


def test_a_retried_batch_is_traced_from_the_attempt_that_was_answered(
    tmp_path: Path, connect: Connect, cluster: str, unique: str
) -> None:
    """The time until then is the queue at the client."""
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    publish_plan(connect, plan, cluster)

    def once_refused(device: FakeDevice, activation: Activation) -> None:
        if activation.header.attempt == 0:
            device.refuse(activation, NackReason.NOT_READY)
        else:
            device.answer(activation)

    behaviours: list[Callable[[FakeDevice, Activation], None]] = [
        once_refused,
        FakeDevice.answer,
        FakeDevice.answer,
    ]
    fakes = [
        FakeDevice(connect, cluster, plan, device, behave)
        for device, behave in zip(devices, behaviours, strict=True)
    ]
    try:
        with Pipeline(settings(cluster, unique), connect) as pipeline:
            pipeline.open()
            [result] = pipeline.run(make_batches(1))
    finally:
        for fake in fakes:
            fake.close()
    assert isinstance(result, BatchResult)
    assert result.attempt == 1
    assert result.sent_us - result.queued_us > 90_000  # a refusal is followed by 0.1 s of patience
    assert result.received_us - result.queued_us == pytest.approx(result.latency_ms * 1000, abs=2)


def test_answers_of_an_earlier_start_are_not_traced(
    tmp_path: Path, connect: Connect, cluster: str, unique: str
) -> None:
    """This process has not sent what they answer, and knows no time of it."""
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    publish_plan(connect, plan, cluster)
    held: list[Activation] = []

    def slowly(device: FakeDevice, activation: Activation) -> None:
        """The first batch is answered at once, the others when the test wants it."""
        if activation.header.batch_id.seq == 0:
            device.answer(activation)
        else:
            held.append(activation)

    fakes = [
        FakeDevice(connect, cluster, plan, device, behave)
        for device, behave in zip(
            devices, [FakeDevice.answer, FakeDevice.answer, slowly], strict=True
        )
    ]
    own, batches = settings(cluster, unique), make_batches(3)

    def start() -> Pipeline:
        journal = Journal(tmp_path / "run.journal")
        journal.client_name(own.name)
        journal.take_source("", "")
        return Pipeline(own, connect, journal=journal)

    try:
        with start() as pipeline:
            pipeline.open()
            next(pipeline.run(batches))
            earlier = pipeline._ledger.epoch
            eventually(lambda: len(held) == 2, "the others are with the last device")
        for activation in held:
            fakes[2].answer(activation)
        told: list[TraceMetrics] = []
        with start() as pipeline:
            pipeline.tracer.on_trace = told.append
            pipeline.open()
            ends = list(pipeline.run(batches[pipeline.counts().submitted :]))
    finally:
        for fake in fakes:
            fake.close()
    results = [end for end in ends if isinstance(end, BatchResult)]
    assert [result.batch_id.epoch for result in results] == [earlier] * 2
    assert {result.sent_us for result in results} == {0}
    assert told
    assert [message.batches for message in told] == [()] * len(told)


def result_of(seq: int, stages: int, name: str = "pi") -> BatchResult:
    late = 2**63 - 1
    return BatchResult(
        BatchId(2**64 - 1, 2**63 - 1 - seq),
        Batch({}, ("a",)),
        {},
        1.0,
        0,
        (Hop(late, late, late, late),) * stages,
        (name,) * stages,
        late,
        late,
        late,
        2**28,
        2**28,
    )


@pytest.mark.parametrize("stages", [0, 1, 3, 16, MAX_STAGES])
def test_no_message_is_larger_than_an_observer_takes(stages: int) -> None:
    clocks = tuple(
        ClockOffset(device="d" * MAX_NAME, offset_us=1 - 2**63, round_trip_us=2**63 - 1)
        for _ in range(MAX_STAGES)
    )
    results = [result_of(seq, stages, "n" * MAX_NAME) for seq in range(1000)]
    told = trace_metrics("c" * MAX_NAME, "0" * 16, 1e9, results, clocks)
    assert len(told.batches) == min(MAX_TRACED, MAX_HOPS // max(1, stages))
    assert len(told.batches) + told.omitted == 1000
    assert told.batches[-1].seq == results[-1].batch_id.seq  # the newest are kept, in order
    payload = told.model_dump_json().encode()
    assert len(payload) <= MAX_TRACE_BYTES
    assert TraceMetrics.model_validate_json(payload) == told


def test_devices_that_do_not_say_what_their_time_is_hold_nothing_up(
    plan: Plan, connect: Connect, cluster: str, unique: str
) -> None:
    """They are of an older version, or the broker's rights are."""
    told: list[TraceMetrics] = []
    with Pipeline(settings(cluster, unique), connect) as pipeline:
        pipeline.tracer._clocks.hear = lambda *_: True  # type: ignore[method-assign]
        pipeline.open()
        pipeline.tracer.on_trace = told.append
        ends = list(pipeline.run(make_batches(50)))
    assert len(ends) == 50
    assert told[-1].clocks == ()
    found = decompose([trace for message in told for trace in message.batches], ())
    assert found.batches
    assert not any(clock.is_measured for clock in found.clocks)
