"""The device: announces itself, obeys the plan, loads its shard, and feeds the runner.

Threads: the connection's network thread only enqueues; the thread that calls :meth:`run` takes
plans and batches from one queue, in order, so that a shard is never swapped under a running batch;
a third thread publishes metrics.
"""

import logging
import os
import platform
import queue
import secrets
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from broker.reporter import EventReporter
from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery, Will
from contract import topics
from contract.errors import BrokerUnreachableError, PlanError, ShardlineError, WireFormatError
from contract.plan import Plan, StageSpec, parse_plan
from contract.status import (
    Capabilities,
    DeviceState,
    DeviceStatus,
    EventKind,
    ShardState,
    parse_status,
)
from contract.tensor_spec import BATCH
from shards.reader import find_shard, read_shard
from stage.counters import StageCounters
from stage.engine import Engine, engine_class, load_engine
from stage.memory import release_free_memory
from stage.metrics import DeviceMeter
from stage.runner import LoadedStage, StageRunner, now_us

METRICS_INTERVAL_S = 1.0
SHARDLINE_VERSION = "0.1.0"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How a device agent runs. ``receive_maximum``: one batch computing, one being published, one
    ready."""

    device: str
    shards_dir: Path
    cluster: str = topics.DEFAULT_CLUSTER
    engine: str = "onnxruntime"
    threads: int = 1
    prepack: bool = True
    receive_maximum: int = 3
    connect_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Received:
    delivery: Delivery
    received_us: int


class StageAgent:
    """One device. :meth:`run` blocks until :meth:`stop`; use one agent once."""

    def __init__(self, settings: StageSettings, connect: Connect) -> None:
        topics.check_name("device", settings.device)
        self._settings, self._connect = settings, connect
        self._engine_version = str(getattr(engine_class(settings.engine), "version", "unknown"))
        self._boot = secrets.randbits(53)  # fits a JSON number exactly
        self._inbox: queue.SimpleQueue[_Received | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._counters = StageCounters()
        self._announcing = threading.Lock()
        self._reporter: EventReporter | None = None
        self._status = self._make_status(DeviceState.ONLINE)

    def stop(self) -> None:
        """Ask :meth:`run` to finish the batch in hand and return. Safe in a signal handler."""
        self._stopping.set()
        self._inbox.put(None)

    def run(self) -> None:
        """Connect and serve until :meth:`stop`.

        Raises:
            NotAuthorisedError: the broker refuses our name or password.
            BrokerUnreachableError: no broker within ``connect_timeout_s`` (None waits for ever).
        """
        cluster, device = self._settings.cluster, self._settings.device
        will = self._make_status(DeviceState.OFFLINE)
        status_topic = topics.status_topic(cluster, device)
        ready = threading.Event()

        def on_connected(_session_present: bool) -> None:
            if ready.is_set():
                self._announce()

        try:
            self._connection = self._connect(
                ConnectionSettings(
                    name=device,
                    receive_maximum=self._settings.receive_maximum,
                    will=Will(status_topic, will.model_dump_json().encode()),
                    connect_timeout_s=self._settings.connect_timeout_s,
                    cancelled=self._stopping,
                ),
                Callbacks(
                    on_delivery=self._enqueue,
                    on_connected=on_connected,
                ),
            )
        except BrokerUnreachableError:
            if self._stopping.is_set():
                return  # asked to stop before there was a broker
            raise
        self._reporter = reporter = EventReporter(cluster, device, self._connection)
        self._runner = StageRunner(
            device,
            cluster,
            self._connection,
            self._counters,
            self._report,
            self._settings.receive_maximum,
        )
        ready.set()
        self._announce()
        for topic_filter in (
            topics.plan_topic(cluster),
            status_topic,
            topics.input_filter(cluster, device),
        ):
            self._connection.subscribe(topic_filter)
        metrics = threading.Thread(
            target=self._publish_metrics, args=(reporter,), name="metrics", daemon=True
        )
        metrics.start()
        try:
            self._serve()
        finally:
            self._shut_down()
            metrics.join(timeout=2 * METRICS_INTERVAL_S)

    def _report(self, kind: EventKind, detail: str) -> None:
        if self._reporter is not None:  # a kept session delivers while we still connect
            self._reporter.report(kind, detail)

    def _enqueue(self, delivery: Delivery) -> None:
        if delivery.qos == 0:
            # The receive maximum does not bound QoS 0: queueing it would let anyone fill our memory
            self._counters.add(rejected=1)
            self._report(
                EventKind.MESSAGE_REJECTED, f"{delivery.topic}: sent at QoS 0, expected QoS 1"
            )
            return
        self._inbox.put(_Received(delivery, now_us()))

    def _serve(self) -> None:
        while not self._stopping.is_set():
            received = self._inbox.get()
            if received is None:
                continue
            kind = _kind_of(received.delivery.topic)
            if kind == "plan":
                self._obey(received.delivery.payload)
                received.delivery.ack()
            elif kind == "status":
                self._answer_own_status(received.delivery.payload)
                received.delivery.ack()
            else:
                self._process(received)

    def _process(self, received: _Received) -> None:
        try:
            self._runner.process(received.delivery, received.received_us)
        except Exception as error:
            log.exception("a batch was given up")
            self._counters.add(rejected=1)
            detail = f"{received.delivery.topic}: {type(error).__name__}: {error}"
            self._report(EventKind.MESSAGE_REJECTED, detail)
            received.delivery.ack()  # else it would come again at every start; the client retries

    def _obey(self, payload: bytes) -> None:
        """Load, keep or drop the shard, as the plan says for this device."""
        try:
            plan = (
                parse_plan(payload, topics.plan_topic(self._settings.cluster)) if payload else None
            )
        except PlanError as error:
            self._report(EventKind.MESSAGE_REJECTED, str(error))
            return
        spec = plan.stage_of(self._settings.device) if plan is not None else None
        loaded = self._runner.loaded
        if loaded is not None:
            if (
                spec is not None
                and plan is not None
                and (loaded.plan.plan_id, loaded.spec.stage_index)
                == (plan.plan_id, spec.stage_index)
            ):
                self._runner.load(
                    replace(
                        loaded, plan=plan, spec=spec, max_message_bytes=plan.max_message_bytes()
                    )
                )
                return
            self._runner.load(None)
            loaded.engine.close()
            del loaded
            release_free_memory()
        if plan is None or spec is None:
            self._set_shard(ShardState.IDLE)
            return
        self._set_shard(ShardState.LOADING, plan, spec)
        try:
            engine = self._load_engine(plan, spec)
        except ShardlineError as error:
            self._set_shard(ShardState.FAILED, plan, spec, str(error))
            self._report(EventKind.SHARD_FAILED, str(error))
            return
        self._runner.load(LoadedStage(plan, spec, engine, plan.max_message_bytes()))
        self._set_shard(ShardState.READY, plan, spec)
        self._report(EventKind.SHARD_READY, f"stage {spec.stage_index} of plan {plan.plan_id}")

    def _load_engine(self, plan: Plan, spec: StageSpec) -> Engine:
        shards_dir = self._settings.shards_dir
        folder = find_shard(shards_dir, plan, spec.stage_index)
        log.info("stage %d of plan %s: loading %s", spec.stage_index, plan.plan_id, folder)
        shard = read_shard(folder, plan, spec.stage_index)
        engine = load_engine(
            self._settings.engine, shard, self._settings.threads, self._settings.prepack
        )
        # The first run allocates and packs: it must not be a batch that somebody waits for.
        engine.run(
            {
                tensor.name: np.zeros(
                    [plan.batch_size if d == BATCH else int(d) for d in tensor.shape], tensor.dtype
                )
                for tensor in spec.inputs
            }
        )
        release_free_memory()
        return engine

    def _set_shard(
        self,
        shard: ShardState,
        plan: Plan | None = None,
        spec: StageSpec | None = None,
        error: str | None = None,
    ) -> None:
        self._status = self._make_status(
            DeviceState.ONLINE,
            shard=shard,
            plan_id=plan.plan_id if plan else None,
            stage_index=spec.stage_index if spec else None,
            error=error,
        )
        self._announce()

    def _answer_own_status(self, payload: bytes) -> None:
        """A late will of a lost connection may have overwritten the birth: announce again."""
        try:
            status = parse_status(payload, self._settings.device)
        except WireFormatError:
            self._announce()  # whoever wrote that, it is not what others should read of us
            return
        if status != self._status:
            self._announce()

    def _announce(self) -> None:
        topic = topics.status_topic(self._settings.cluster, self._settings.device)
        with self._announcing:  # the network thread must not publish an older status last
            self._connection.publish(topic, self._status.model_dump_json().encode(), retain=True)

    def _make_status(
        self,
        state: DeviceState,
        *,
        shard: ShardState = ShardState.IDLE,
        plan_id: str | None = None,
        stage_index: int | None = None,
        error: str | None = None,
    ) -> DeviceStatus:
        return DeviceStatus(
            device=self._settings.device,
            state=state,
            boot=self._boot,
            shard=shard,
            plan_id=plan_id,
            stage_index=stage_index,
            error=error,
            capabilities=Capabilities(
                machine=platform.machine(),
                cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
                memory_bytes=psutil.virtual_memory().total,
                engine=self._settings.engine,
                engine_version=self._engine_version,
                shardline_version=SHARDLINE_VERSION,
            ),
        )

    def _publish_metrics(self, reporter: EventReporter) -> None:
        meter = DeviceMeter(self._settings.device, self._counters)
        topic = topics.metrics_topic(self._settings.cluster, self._settings.device)
        while not self._stopping.wait(METRICS_INTERVAL_S):
            status = self._status
            metrics = meter.measure(
                plan_id=status.plan_id,
                stage_index=status.stage_index,
                shard=status.shard,
                queue_depth=self._inbox.qsize(),
                reconnects=self._connection.reconnects,
            )
            self._connection.publish(topic, metrics.model_dump_json().encode(), qos=0)
            reporter.flush()

    def _shut_down(self) -> None:
        self._status = self._make_status(DeviceState.STOPPED)
        topic = topics.status_topic(self._settings.cluster, self._settings.device)
        try:
            self._connection.publish(
                topic, self._status.model_dump_json().encode(), retain=True
            ).result(timeout=2.0)
        except (ShardlineError, TimeoutError):
            log.info("the broker is away: it will announce our end by the will")
        self._connection.close()
        if self._runner.loaded is not None:
            self._runner.loaded.engine.close()


def _kind_of(topic: str) -> str:
    try:
        return topics.parse_topic(topic).kind
    except WireFormatError:
        return "input"  # the runner rejects it with a report
