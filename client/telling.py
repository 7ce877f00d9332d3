"""What a pipeline tells of itself once a second: its metrics, its traces, what it had to refuse."""

from collections.abc import Callable

from broker.reporter import EventReporter
from broker.split import SplitConnection
from client.feed import FeedWatch
from client.inbox import Inbox
from client.ledger import Ledger
from client.settings import ClientSettings
from client.tracer import Tracer
from contract import topics
from contract.metrics import PipelineMetrics
from contract.status import EventKind

METRICS_INTERVAL_S = 1.0


class Teller:
    """Publishes metrics. Owned by the pipeline's thread."""

    def __init__(
        self,
        settings: ClientSettings,
        connection: SplitConnection,
        watch: FeedWatch,
        ledger: Ledger,
        inbox: Inbox,
        tracer: Tracer,
        reporter: EventReporter,
        now: float,
    ) -> None:
        self._connection, self._watch, self._ledger = connection, watch, ledger
        self._inbox, self._tracer, self._reporter = inbox, tracer, reporter
        self._topic = topics.pipeline_metrics_topic(settings.cluster, settings.name)
        self._last, self._told_refused = now, 0

    def is_due(self, now: float) -> bool:
        """Whether a second has passed."""
        return now - self._last >= METRICS_INTERVAL_S

    def tell(self, now: float, on_metrics: Callable[[PipelineMetrics], None]) -> None:
        """Publish what has happened since the last time."""
        self._last = now
        if self._inbox.refused > self._told_refused:
            count, self._told_refused = self._inbox.refused, self._inbox.refused
            detail = f"{count} messages at QoS 0, or too large, since the start"
            self._reporter.report(EventKind.MESSAGE_REJECTED, detail)
        self._reporter.flush()
        meter = self._watch.feed.meter
        ended = meter.recent
        metrics = meter.measure(now, self._ledger.counts())
        on_metrics(metrics)
        self._connection.publish(self._topic, metrics.model_dump_json().encode(), qos=0)
        self._tracer.publish(self._watch.feed.plan.plan_id, ended)
