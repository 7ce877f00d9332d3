"""The most memory that each device has reported, from the metrics that they publish."""

from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from contract import topics
from contract.errors import WireFormatError
from contract.metrics import DeviceMetrics

MAX_METRICS_BYTES = 64 * 1024


class MemoryWatch:
    """A second connection that reads metrics. Use as a context manager."""

    def __init__(self, connect: Connect, cluster: str, name: str) -> None:
        """Connect and listen.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: no connection.
        """
        self.rss_bytes: dict[str, int] = {}
        self._connection = connect(ConnectionSettings(name=name), Callbacks(on_delivery=self._hear))
        self._connection.subscribe(topics.metrics_filter(cluster))

    def __enter__(self) -> "MemoryWatch":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close(forget_session=True)

    def _hear(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            topic = topics.parse_topic(delivery.topic)
            if topic.kind != "metrics" or len(delivery.payload) > MAX_METRICS_BYTES:
                return
            metrics = DeviceMetrics.model_validate_json(delivery.payload)
        except (WireFormatError, ValueError):
            return  # somebody else's message: it tells us nothing
        if metrics.device == topic.sender:
            known = self.rss_bytes.get(metrics.device, 0)
            self.rss_bytes[metrics.device] = max(known, metrics.rss_bytes)
