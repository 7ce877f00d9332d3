"""Processes die and plans change in the middle of a run: no batch is lost, none counted twice."""

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.memory import MemoryBroker
from broker.transport import BrokerAddress, Callbacks, Connect, ConnectionSettings
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.errors import DeliveryError, PlanError, ShardError, TensorMismatchError
from contract.metrics import PipelineMetrics
from contract.nack import Nack, NackReason
from contract.plan import Plan
from contract.status import DeviceState, parse_status
from tests.conftest import StartStage, eventually
from tests.pipeline.fakes import (
    FakeDevice,
    Run,
    is_answer_of,
    make_batches,
    place_on,
    publish_plan,
)
from tests.stage.harness import Listener
from tests.tiny import make_tiny_plan


@pytest.fixture
def devices(unique: str) -> tuple[str, ...]:
    return tuple(f"pi-{index}-{unique}" for index in range(3))


@pytest.fixture
def plan(tmp_path: Path, devices: tuple[str, ...], cluster: str) -> Plan:
    return make_tiny_plan(tmp_path, devices=devices, cluster=cluster)


def client(connect: Connect, cluster: str, unique: str, **settings: object) -> Pipeline:
    settings.setdefault("ready_timeout_s", 15.0)
    settings.setdefault("name", f"client-{unique}")
    return Pipeline(ClientSettings(cluster=cluster, **settings), connect)  # type: ignore[arg-type]


class StageProcess:
    """`python -m shardline stage` as a child process."""

    def __init__(self, device: str, shards: Path, broker: BrokerAddress, cluster: str) -> None:
        command = [sys.executable, "-m", "shardline", "stage", "--device", device]
        command += ["--shards", str(shards), "--broker", str(broker), "--cluster", cluster]
        self._command = [*command, "--threads", "1"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@pytest.fixture
def middle(
    tmp_path: Path, shared_broker: EmbeddedBroker, devices: tuple[str, ...], cluster: str
) -> Iterator[StageProcess]:
    process = StageProcess(devices[1], tmp_path, shared_broker.address, cluster)
    yield process
    if process.process.poll() is None:
        process.kill()


def test_a_device_killed_and_restarted_loses_nothing(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    middle: StageProcess,
    start_stage: StartStage,
) -> None:
    observer = Listener(connect, f"observer-{unique}", topics.status_filter(cluster))
    for device in (devices[0], devices[2]):
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)

    def kill_and_restart(ended: int) -> None:
        if ended in (20, 60):
            middle.kill()
            middle.start()

    with client(connect, cluster, unique) as pipeline:
        pipeline.open()
        run = Run(pipeline, make_batches(120)).go(kill_and_restart)
        run.keeps_the_promise()
    states = [s for s in observer.payloads("status", parse_status) if s.device == devices[1]]
    assert [s.state for s in states].count(DeviceState.OFFLINE) >= 2  # the will told
    assert len({s.boot for s in states}) == 3
    observer.close()
    assert middle.end() == 0


def test_a_stage_process_ends_in_order_on_sigterm(
    tmp_path: Path, connect: Connect, cluster: str, unique: str, middle: StageProcess
) -> None:
    observer = Listener(connect, f"observer-{unique}", topics.status_filter(cluster))
    eventually(lambda: observer.heard, "it is online")
    started = time.monotonic()
    assert middle.end() == 0
    assert time.monotonic() - started < 4
    eventually(
        lambda: observer.payloads("status", parse_status)[-1].state is DeviceState.STOPPED,
        "it says stopped",
    )
    observer.close()


def test_a_stage_process_that_waits_for_its_broker_ends_on_sigterm(tmp_path: Path) -> None:
    """A Pi may be up long before its broker; `docker stop` must not take ten seconds."""
    process = StageProcess("pi-0", tmp_path, BrokerAddress("127.0.0.1", 1), "home")
    children = process.process
    try:
        # It has installed its handlers when it tries to connect: SigCgt in /proc shows SIGTERM.
        def handles_sigterm() -> bool:
            status = Path(f"/proc/{children.pid}/status").read_text()
            mask = int(status.split("SigCgt:")[1].split()[0], 16)
            return bool(mask & 1 << (signal.SIGTERM - 1))

        eventually(handles_sigterm, "the process is up")
        children.terminate()
        try:
            children.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pytest.fail("it does not end while the broker is away")
    finally:
        process.kill()


def test_a_broker_killed_and_restarted_loses_nothing(
    tmp_path: Path,
    own_broker: EmbeddedBroker,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    start_stage: StartStage,
) -> None:
    """It comes back with nothing: no session, no retained plan, no message."""
    connect = Connector(own_broker.address)
    for device in devices:
        start_stage(device, tmp_path, connect=connect)
    publish_plan(connect, plan, cluster)

    def kill_and_restart(ended: int) -> None:
        if ended == 20:
            own_broker.kill()
            own_broker.start()

    with client(connect, cluster, unique) as pipeline:
        pipeline.open()
        run = Run(pipeline, make_batches(60)).go(kill_and_restart)
        run.keeps_the_promise()
        assert pipeline.counts().retried >= 1


def test_a_plan_that_changes_in_the_middle_answers_every_batch_by_one_plan(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    start_stage: StartStage,
) -> None:
    other = make_tiny_plan(tmp_path, seed=1, name="other", devices=devices, cluster=cluster)
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    with client(connect, cluster, unique) as pipeline:
        pipeline.open()
        ends = []
        for end in pipeline.run(make_batches(80)):
            ends.append(end)
            if len(ends) == 20:
                publish_plan(connect, other, cluster)
        counts = pipeline.counts(finished=True)
        assert pipeline.plan.plan_id == other.plan_id
    assert sorted(end.batch_id.seq for end in ends) == list(range(80))
    assert (counts.delivered, counts.dead, counts.lost) == (80, 0, 0)
    results = [end for end in ends if isinstance(end, BatchResult)]
    first, second = ([is_answer_of(r, seed) for r in results] for seed in (0, 1))
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(first[:20])
    assert second[-1]


def test_the_same_stages_on_other_devices_take_over_in_the_middle(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    start_stage: StartStage,
) -> None:
    spare = f"spare-{unique}"
    moved = place_on(plan, [devices[0], spare, devices[2]], cluster)
    for device in (*devices, spare):
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    with client(connect, cluster, unique) as pipeline:
        pipeline.open()

        def move(ended: int) -> None:
            if ended == 20:
                publish_plan(connect, moved, cluster)

        Run(pipeline, make_batches(60)).go(move).keeps_the_promise()
        assert pipeline.plan.placement == moved.placement


def test_opening_without_a_plan_says_so(connect: Connect, cluster: str, unique: str) -> None:
    with (
        client(connect, cluster, unique, ready_timeout_s=2.0) as pipeline,
        pytest.raises(PlanError, match="shardline publish"),
    ):
        pipeline.open()


def test_opening_with_a_device_away_says_which(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    start_stage: StartStage,
) -> None:
    start_stage(devices[0], tmp_path)
    publish_plan(connect, plan, cluster)
    with (
        client(connect, cluster, unique, ready_timeout_s=3.0) as pipeline,
        pytest.raises(DeliveryError, match=f"stage 1: {devices[1]} is not seen"),
    ):
        pipeline.open()


def test_opening_with_a_failed_shard_says_why(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    start_stage: StartStage,
) -> None:
    (tmp_path / "tiny" / "stage-1" / "weights.safetensors").unlink()
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    with (
        client(connect, cluster, unique) as pipeline,
        pytest.raises(ShardError, match=rf"{devices[1]}.*weights\.safetensors"),
    ):
        pipeline.open()


def test_a_batch_that_does_not_fit_is_refused_before_it_is_sent(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    start_stage: StartStage,
) -> None:
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    inputs = Listener(connect, f"observer-{unique}", topics.input_filter(cluster, devices[0]))
    with client(connect, cluster, unique) as pipeline:
        pipeline.open()
        [good] = make_batches(1)
        wrong = type(good)({"picture": good.tensors["image"]}, good.names)
        with pytest.raises(TensorMismatchError, match="picture"):
            list(pipeline.run([wrong]))
        with pytest.raises(DeliveryError, match="at most 8"):
            list(pipeline.run(make_batches(1, size=9)))
        assert pipeline.counts().submitted == 0
        Run(pipeline, make_batches(5)).go().keeps_the_promise()
    own = topics.input_topic(cluster, devices[0], plan.plan_id, 0, f"client-{unique}")

    def batches() -> list[str]:
        return [heard.topic for heard in inputs.heard if plan.plan_id in heard.topic]

    eventually(lambda: len(batches()) >= 5, "the observer has heard all")
    assert batches() == [own] * 5
    inputs.close()


def test_a_pipeline_runs_twice(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    start_stage: StartStage,
) -> None:
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    with client(connect, cluster, unique) as pipeline:
        pipeline.open()
        first = [end.batch_id for end in pipeline.run(make_batches(10))]
        assert list(pipeline.run([])) == []
        second = [end.batch_id for end in pipeline.run(make_batches(10))]
        assert len({*first, *second}) == 20
        counts = pipeline.counts(finished=True)
        assert (counts.submitted, counts.delivered, counts.lost) == (20, 20, 0)


ENOUGH = 20


def test_pipeline_metrics_add_up(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    plan: Plan,
    devices: tuple[str, ...],
    start_stage: StartStage,
) -> None:
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    name = f"client-{unique}"
    topic = topics.pipeline_metrics_topic(cluster, name)
    observer = Listener(connect, f"observer-{unique}", topic)
    with client(connect, cluster, unique, name=name) as pipeline:
        pipeline.open()
        told: list[PipelineMetrics] = []
        pipeline.on_metrics = told.append
        deadline = time.monotonic() + 15
        endless = (make_batches(1)[0] for _ in itertools.count())

        def is_wanted(_batch: Batch) -> bool:
            came_back = any(metrics.ledger.delivered >= ENOUGH for metrics in told)
            return not came_back and time.monotonic() < deadline

        count = sum(1 for _ in pipeline.run(itertools.takewhile(is_wanted, endless)))
    eventually(lambda: len(observer.heard) == len(told) >= 2, "metrics of the run and of its end")
    heard = [PipelineMetrics.model_validate_json(d.payload) for d in observer.heard]
    assert heard == told
    for metrics in heard:
        ledger = metrics.ledger
        assert ledger.submitted == (ledger.delivered + ledger.in_flight + ledger.dead + ledger.lost)
        assert [stage.stage_index for stage in metrics.stages] == [0, 1, 2]
    assert heard[-1].ledger.delivered == count
    first = next(metrics for metrics in heard if metrics.ledger.delivered)
    assert first.batches_per_s > 0, "those that came back count at once"
    # Of one batch in a busy second, figures round to nothing.
    busy = next(metrics for metrics in heard if metrics.ledger.delivered >= ENOUGH)
    assert busy.images_per_s == pytest.approx(2 * busy.batches_per_s, rel=0.01)
    assert busy.latency_ms_p50 is not None
    assert busy.latency_ms_p50 <= busy.latency_ms_p95 <= busy.latency_ms_p99  # type: ignore[operator]
    for stage in busy.stages:
        assert 0 < stage.utilisation <= 1
        assert stage.compute_ms_p50 is not None
    observer.close()


@pytest.mark.parametrize("kind", ["result", "nack"])
def test_a_client_that_comes_back_under_its_name_survives_what_waited_for_it(
    tmp_path: Path, cluster: str, unique: str, plan: Plan, devices: tuple[str, ...], kind: str
) -> None:
    """A crash leaves its session at the broker, and results in it, which come before the plan."""
    broker = MemoryBroker()
    build = topics.result_topic if kind == "result" else topics.nack_topic
    settings = ConnectionSettings(name=f"client-{unique}")
    crashed = broker.connect(settings, Callbacks(on_delivery=lambda _delivery: None))
    crashed.subscribe(build(cluster, settings.name, devices[2]))
    crashed.drop()  # type: ignore[attr-defined]
    publish_plan(broker.connect, plan, cluster)
    fakes = [
        FakeDevice(broker.connect, cluster, plan, device, lambda fake, a: fake.answer(a))
        for device in devices
    ]
    nack = Nack(
        plan_id=plan.plan_id,
        epoch="0" * 16,
        seq=0,
        attempt=0,
        stage_index=0,
        route=devices,
        device=devices[2],
        reason=NackReason.STALE,
        detail="",
    )
    fakes[2].connection.publish(
        build(cluster, settings.name, devices[2]), nack.model_dump_json().encode()
    )
    with client(broker.connect, cluster, unique, name=settings.name) as pipeline:
        pipeline.open()
        Run(pipeline, make_batches(5)).go().keeps_the_promise()
    for fake in fakes:
        fake.close()


def test_a_malformed_plan_does_not_end_a_run(
    cluster: str, unique: str, plan: Plan, devices: tuple[str, ...]
) -> None:
    broker = MemoryBroker()
    publish_plan(broker.connect, plan, cluster)
    fakes = [
        FakeDevice(broker.connect, cluster, plan, device, lambda fake, a: fake.answer(a))
        for device in devices
    ]
    with client(broker.connect, cluster, unique) as pipeline:
        pipeline.open()
        fakes[0].connection.publish(topics.plan_topic(cluster), b"rubbish")
        Run(pipeline, make_batches(30)).go().keeps_the_promise()
        assert pipeline.rejected == 1
    for fake in fakes:
        fake.close()
