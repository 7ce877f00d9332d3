"""The device: announces itself, obeys the plan, loads its shard, and feeds the runner.

Threads: the connection's network thread only enqueues; the thread that calls :meth:`run` takes
plans and batches from one queue, in order, so that a shard is never swapped under a running batch;
others publish metrics, fetch shards and answer what a planner asks.
"""

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

from broker.reporter import EventReporter
from broker.self_test import SelfTest, check_packet_size
from broker.split import Elsewhere, SplitConnection
from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from contract import topics
from contract.errors import BrokerError, BrokerUnreachableError, PlanError, ShardlineError
from contract.plan import Plan, StageSpec, parse_plan
from contract.status import EventKind, ShardState
from contract.version import SHARDLINE_VERSION
from shards.cache import ShardCache
from stage.announcer import Announcer
from stage.clock_server import ClockServer
from stage.commands import CommandServer
from stage.counters import StageCounters
from stage.crash_marker import CrashMarker
from stage.engine import engine_class
from stage.fetcher import Fetcher
from stage.health import write_heartbeat
from stage.inbox import Item, NewPlan, Received, StageInbox, Stop
from stage.link_probe import LinkProber
from stage.loader import ShardLoader
from stage.machine import examine
from stage.measurer import Measurer
from stage.memory import release_free_memory
from stage.metrics import DeviceMeter
from stage.runner import StageRunner
from stage.settings import StageSettings as StageSettings  # who makes an agent makes these
from stage.work import LoadedStage

METRICS_INTERVAL_S = 1.0
EDGE_RETRY_S = 5.0
"""Pause after a plan whose edge brokers do not answer: after a power cut they may start last."""

log = logging.getLogger(__name__)


class StageAgent:
    """One device. :meth:`run` blocks until :meth:`stop`; use one agent once."""

    def __init__(
        self, settings: StageSettings, connect: Connect, *, elsewhere: Elsewhere | None = None
    ) -> None:
        """``elsewhere``: how to reach the brokers of a plan's edges; None refuses such plans."""
        topics.check_name("device", settings.device)
        self._settings, self._connect, self._elsewhere = settings, connect, elsewhere
        self._engine_version = str(getattr(engine_class(settings.engine), "version", "unknown"))
        self._announcer = Announcer(
            settings.cluster, settings.device, settings.engine, self._engine_version
        )
        self._stopping = threading.Event()
        self._counters = StageCounters()
        self._inbox = StageInbox(settings.device, self._counters, self._report)
        self._self_test = SelfTest(
            settings.device, topics.device_self_topics(settings.cluster, settings.device)
        )
        cache = ShardCache(settings.cache_folder, settings.cache_limit_bytes)
        self._cache = cache
        self._loader = ShardLoader(
            settings.shards_dir, cache, settings.engine, settings.threads, settings.prepack
        )
        self._fetcher: Fetcher | None = None
        self._measurer: Measurer | None = None
        self._prober: LinkProber | None = None
        self._commands: CommandServer | None = None
        self._reporter: EventReporter | None = None
        self._unserved: bytes | None = None  # a plan whose edge brokers did not answer
        self._retry_at = 0.0

    def stop(self) -> None:
        """Ask :meth:`run` to finish the batch in hand and return. Safe in a signal handler."""
        self._stopping.set()
        self._inbox.stop()

    def run(self) -> None:
        """Connect and serve until :meth:`stop`.

        Raises:
            NotAuthorisedError: the broker refuses our name or password, or keeps from us what is
                ours to read.
            NameTakenError: another process uses our name, and was there first.
            BrokerUnreachableError: no broker within ``connect_timeout_s`` (None waits for ever).
        """
        settings = self._settings
        cluster, device = settings.cluster, settings.device
        inputs = topics.input_filter(cluster, device)
        try:
            self._connection = SplitConnection(
                self._connect,
                ConnectionSettings(
                    name=device,
                    receive_maximum=settings.receive_maximum,
                    will=self._announcer.will(),
                    connect_timeout_s=settings.connect_timeout_s,
                    cancelled=self._stopping,
                ),
                self._self_test.wrap(
                    Callbacks(
                        on_delivery=self._inbox.hear,
                        on_connected=lambda _session_present: self._announcer.announce(),
                        on_failed=self._inbox.fail,
                    )
                ),
                self._elsewhere,
                (inputs,),
            )
        except BrokerUnreachableError:
            if self._stopping.is_set():
                return  # asked to stop before there was a broker
            raise
        self._reporter = reporter = EventReporter(cluster, device, self._connection)
        marker = settings.cache_folder / f"{device}.computing"
        self._runner = StageRunner(
            device,
            cluster,
            self._connection,
            self._counters,
            self._report,
            settings.receive_maximum,
            CrashMarker(marker if settings.remember_crashes else None),
        )
        metrics = threading.Thread(
            target=self._publish_metrics, args=(reporter,), name="metrics", daemon=True
        )
        failure: BrokerError | None = None
        try:
            self._serve_the_planner()
            self._announcer.begin(self._connection)
            # At QoS 0, past the batches that a kept session delivers first: see `_serve`.
            self._connection.subscribe(topics.plan_topic(cluster), qos=0)
            self._connection.subscribe(topics.clock_filter(cluster, device), qos=0)
            for topic_filter in (
                topics.status_topic(cluster, device),
                inputs,
                topics.command_filter(cluster, device),
                topics.blob_filter(cluster, device),
            ):
                self._connection.subscribe(topic_filter)
            metrics.start()
            self._self_test.run(self._connection.main, cancelled=self._stopping)
            self._serve()
        except BrokerError as error:
            failure = error
            raise
        finally:
            self._stopping.set()
            self._shut_down(failure)
            if metrics.is_alive():
                metrics.join(timeout=2 * METRICS_INTERVAL_S)

    def _serve_the_planner(self) -> None:
        settings, connection = self._settings, self._connection.main
        cluster, device = settings.cluster, settings.device
        self._fetcher = Fetcher(
            cluster, device, connection, self._cache, self._loader.holds, self._report
        )
        self._measurer = Measurer(
            cluster,
            device,
            connection,
            self._cache,
            settings.engine,
            settings.threads,
            self._holds_shard,
        )
        self._prober = LinkProber(cluster, device, connection, self._holds_shard)
        self._commands = CommandServer(
            cluster,
            device,
            connection,
            self._fetcher,
            self._measurer,
            self._prober,
            lambda request_id: examine(
                request_id,
                settings.cache_folder,
                settings.engine,
                self._engine_version,
                SHARDLINE_VERSION,
                threads=settings.threads,
            ),
            self._report,
        )
        self._fetcher.start()
        self._commands.start()
        self._inbox.on_blob, self._inbox.on_own_blob = self._fetcher.on_blob, self._prober.on_blob
        self._inbox.on_command = self._commands.on_command
        self._inbox.on_clock = ClockServer(cluster, device, connection).answer
        self._inbox.max_input_bytes = self._max_input_bytes

    def _holds_shard(self) -> bool:
        return self._runner.loaded is not None

    def _report(self, kind: EventKind, detail: str) -> None:
        if self._reporter is not None:  # a kept session delivers while we still connect
            self._reporter.report(kind, detail)

    def _max_input_bytes(self) -> int | None:
        """Of the plan that is served; None while there is none, or another one waits its turn."""
        if self._commands is None or self._inbox.has_new_plan:
            return None
        loaded = self._runner.loaded
        return None if loaded is None else loaded.max_message_bytes

    def _serve(self) -> None:
        # A kept session delivers its batches at once. The plan comes before our own messages, which
        # are back: whatever is retained has been heard, and no batch need be refused for want of it
        if not self._stopping.is_set():
            self._obey_the_newest_plan()
        while not self._stopping.is_set():
            self._take(self._next())

    def _take(self, item: Item | None) -> None:
        match item:
            case None | Stop():
                pass
            case NewPlan():
                self._obey_the_newest_plan()
            case Received():
                self._process(item)
            case BrokerError():
                raise item
            case Delivery():
                self._announcer.answer(item.payload)
                item.ack()

    def _next(self) -> Item | None:
        """What is to be done next; while a plan could not be served, also that plan again."""
        if self._unserved is None:
            return self._inbox.next()
        item = self._inbox.next(max(0.0, self._retry_at - time.monotonic()))
        if item is None:
            self._obey(self._unserved)
        return item

    def _process(self, received: Received) -> None:
        try:
            self._runner.process(received.delivery, received.received_us)
        except Exception as error:
            log.exception("a batch was given up")
            self._counters.add(rejected=1)
            detail = f"{received.delivery.topic}: {type(error).__name__}: {error}"
            self._report(EventKind.MESSAGE_REJECTED, detail)
            received.delivery.ack()  # else it would come again at every start; the client retries

    def _obey_the_newest_plan(self) -> None:
        payload = self._inbox.take_plan()
        if payload is not None:
            self._obey(payload)
            self._inbox.plan_obeyed()

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
        replica = plan.replica_of(self._settings.device) if plan is not None else None
        prepack = replica is None or replica.prepack
        problem = self._reach_the_edges(plan, spec)
        self._unserved = payload if problem else None
        self._retry_at = time.monotonic() + EDGE_RETRY_S
        loaded = self._runner.loaded
        if loaded is not None:
            if (
                spec is not None
                and plan is not None
                and problem is None
                and (loaded.plan.plan_id, loaded.spec.stage_index, loaded.prepack)
                == (plan.plan_id, spec.stage_index, prepack)
            ):
                self._runner.load(
                    replace(
                        loaded,
                        plan=plan,
                        spec=spec,
                        max_message_bytes=plan.max_message_bytes(),
                        earlier_feeders=loaded.feeders,
                    )
                )
                return
            self._runner.load(None)
            loaded.engine.close()
            del loaded
            release_free_memory()
        if plan is None or spec is None:
            self._announcer.set_shard(ShardState.IDLE)
            return
        if problem is not None:
            self._fail(plan, spec, problem)
            return
        self._announcer.set_shard(ShardState.LOADING, plan, spec)
        if self._fetcher is not None:
            self._fetcher.use(frozenset((spec.graph.sha256, spec.weights.sha256)))
        try:
            check_packet_size(plan, self._connection.max_packet_bytes)
            engine = self._loader.load(plan, spec, prepack)
        except ShardlineError as error:
            self._fail(plan, spec, str(error))
            return
        self._runner.load(LoadedStage(plan, spec, engine, plan.max_message_bytes(), prepack))
        self._announcer.set_shard(ShardState.READY, plan, spec)
        self._report(EventKind.SHARD_READY, f"stage {spec.stage_index} of plan {plan.plan_id}")

    def _reach_the_edges(self, plan: Plan | None, spec: StageSpec | None) -> str | None:
        """Open links to the brokers of this stage's edges; what keeps us from it, if anything.

        A language model's tokens come back to the first stage by the edge of the results.
        After a failure the links are those of the plan before: whoever still sends by them is told
        that we are not ready.
        """
        addresses: dict[int, str] = {}
        if plan is not None and spec is not None:
            edges = {spec.stage_index, spec.stage_index + 1}
            if plan.decoding is not None and not spec.stage_index:
                edges.add(plan.num_stages)
            addresses = plan.edge_addresses(edges)
        try:
            self._connection.use(addresses, plan.num_stages if plan is not None else 0)
        except ShardlineError as error:
            return str(error)
        return None

    def _fail(self, plan: Plan, spec: StageSpec, error: str) -> None:
        self._announcer.set_shard(ShardState.FAILED, plan, spec, error)
        self._report(EventKind.SHARD_FAILED, error)

    def _publish_metrics(self, reporter: EventReporter) -> None:
        meter = DeviceMeter(self._settings.device, self._counters)
        topic = topics.metrics_topic(self._settings.cluster, self._settings.device)
        last_connected_s = time.monotonic()
        while not self._stopping.wait(METRICS_INTERVAL_S):
            status = self._announcer.status
            connected, now_s = self._connection.main.is_connected, time.monotonic()
            last_connected_s = now_s if connected else last_connected_s
            if self._settings.heartbeat is not None:
                self._beat(self._settings.heartbeat, now_s - last_connected_s, connected)
            metrics = meter.measure(
                plan_id=status.plan_id,
                stage_index=status.stage_index,
                shard=status.shard,
                queue_depth=len(self._inbox),
                reconnects=self._connection.reconnects,
                caches=self._runner.cache_usage,
            )
            self._connection.publish(topic, metrics.model_dump_json().encode(), qos=0)
            reporter.flush()

    def _beat(self, path: Path, away_s: float, connected: bool) -> None:
        try:
            write_heartbeat(path, connected, away_s, self._announcer.status.shard)
        except OSError as error:
            log.warning("%s: no heartbeat (%s)", path, error.strerror or error)

    def _shut_down(self, failure: BrokerError | None) -> None:
        for server in (self._commands, self._prober, self._measurer, self._fetcher):
            if server is not None:
                server.close()
        if not self._announcer.say_goodbye(None if failure is None else str(failure)):
            log.info("the broker is away: it will announce our end by the will")
        self._connection.close()
        if self._runner.loaded is not None:
            self._runner.loaded.engine.close()
        self._runner.close()
