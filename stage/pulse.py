"""Once a second, on a thread of its own: the heartbeat, the metrics, and events that waited."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from broker.reporter import EventReporter
from broker.split import SplitConnection
from contract import topics
from stage.announcer import Announcer
from stage.caches import CacheUsage
from stage.counters import StageCounters
from stage.health import write_heartbeat
from stage.metrics import DeviceMeter

METRICS_INTERVAL_S = 1.0

log = logging.getLogger(__name__)


class Pulse:
    """Of one device, for as long as its process serves it."""

    def __init__(
        self,
        device: str,
        cluster: str,
        connection: SplitConnection,
        announcer: Announcer,
        counters: StageCounters,
        reporter: EventReporter,
        heartbeat: Path | None,
        queue_depth: Callable[[], int],
        caches: Callable[[], CacheUsage | None],
    ) -> None:
        """``heartbeat``: the file that the container's health check reads; None writes none."""
        self._meter = DeviceMeter(device, counters)
        self._topic = topics.metrics_topic(cluster, device)
        self._connection, self._announcer, self._reporter = connection, announcer, reporter
        self._heartbeat, self._queue_depth, self._caches = heartbeat, queue_depth, caches
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="metrics", daemon=True)

    def start(self) -> None:
        """The first beat comes after one interval."""
        self._thread.start()

    def close(self) -> None:
        """Stop; harmless before :meth:`start`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * METRICS_INTERVAL_S)

    def _beat_on(self) -> None:
        last_connected_s = time.monotonic()
        while not self._stopping.wait(METRICS_INTERVAL_S):
            connected, now_s = self._connection.main.is_connected, time.monotonic()
            last_connected_s = now_s if connected else last_connected_s
            if self._heartbeat is not None:
                self._beat(self._heartbeat, now_s - last_connected_s, connected)
            self._publish()
            self._reporter.flush()

    def _publish(self) -> None:
        status = self._announcer.status
        metrics = self._meter.measure(
            plan_id=status.plan_id,
            stage_index=status.stage_index,
            shard=status.shard,
            queue_depth=self._queue_depth(),
            reconnects=self._connection.reconnects,
            caches=self._caches(),
        )
        self._connection.publish(self._topic, metrics.model_dump_json().encode(), qos=0)

    def _beat(self, path: Path, away_s: float, connected: bool) -> None:
        try:
            write_heartbeat(path, connected, away_s, self._announcer.status.shard)
        except OSError as error:
            log.warning("%s: no heartbeat (%s)", path, error.strerror or error)
