"""The device: announces itself, obeys the plan, loads its shard, and feeds the runner.

Threads: the connection's network thread only enqueues; the thread that calls :meth:`run` takes
plans and batches from one queue, in order, so that a shard is never swapped under a running batch;
others publish metrics, fetch shards and answer what a planner asks.
"""

import logging
import threading

from broker.reporter import EventReporter
from broker.self_test import SelfTest
from broker.split import Elsewhere, SplitConnection
from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from contract import topics
from contract.errors import BrokerError, BrokerUnreachableError
from contract.status import EventKind
from contract.version import SHARDLINE_VERSION
from shards.cache import ShardCache
from stage.announcer import Announcer
from stage.clock_server import ClockServer
from stage.commands import CommandServer
from stage.counters import StageCounters
from stage.crash_marker import CrashMarker
from stage.engine import engine_class
from stage.fetcher import Fetcher
from stage.inbox import Item, NewPlan, Received, StageInbox, Stop
from stage.link_probe import LinkProber
from stage.loader import ShardLoader
from stage.machine import examine
from stage.measurer import Measurer
from stage.plan_follower import PlanFollower
from stage.pulse import Pulse
from stage.runner import StageRunner
from stage.settings import StageSettings as StageSettings  # who makes an agent makes these

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
        self._reporter = EventReporter(cluster, device, self._connection)
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
        pulse = Pulse(
            device,
            cluster,
            self._connection,
            self._announcer,
            self._counters,
            self._reporter,
            settings.heartbeat,
            queue_depth=self._inbox.__len__,
            caches=lambda: self._runner.cache_usage,
        )
        failure: BrokerError | None = None
        try:
            self._follower = self._follow_plans(self._serve_the_planner())
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
            pulse.start()
            self._self_test.run(self._connection.main, cancelled=self._stopping)
            self._serve()
        except BrokerError as error:
            failure = error
            raise
        finally:
            self._stopping.set()
            pulse.close()
            self._shut_down(failure)

    def _serve_the_planner(self) -> Fetcher:
        """Fetch, measure and answer from now on; the fetcher follows the plans, too."""
        settings, connection = self._settings, self._connection.main
        cluster, device = settings.cluster, settings.device
        self._fetcher = fetcher = Fetcher(
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
            fetcher,
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
        fetcher.start()
        self._commands.start()
        self._inbox.on_blob, self._inbox.on_own_blob = fetcher.on_blob, self._prober.on_blob
        self._inbox.on_command = self._commands.on_command
        self._inbox.on_clock = ClockServer(cluster, device, connection).answer
        self._inbox.max_input_bytes = self._max_input_bytes
        return fetcher

    def _follow_plans(self, fetcher: Fetcher) -> PlanFollower:
        settings = self._settings
        return PlanFollower(
            settings.device,
            settings.cluster,
            self._connection,
            self._announcer,
            self._runner,
            self._loader,
            fetcher,
            self._report,
        )

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
        retry_in_s = self._follower.retry_in_s()
        if retry_in_s is None:
            return self._inbox.next()
        if not retry_in_s:
            self._follower.retry()
        return self._inbox.next(retry_in_s)

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
            self._follower.follow(payload)
            self._inbox.plan_obeyed()

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
