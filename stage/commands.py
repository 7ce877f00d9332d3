"""Does what a planner asks of this device, beside the batches: fetch a shard, describe the machine,
measure a graph, probe the link to the broker.

Requests wait in a short queue for a thread of their own; what takes long is handed on to others, so
that a question is answered while megabytes come in.
"""

import logging
import queue
import threading
from collections.abc import Callable

from broker.transport import Connection, Delivery
from contract import topics
from contract.command import Examination, Examine, Fetch, Measure, ProbeLink, parse_command
from contract.errors import ShardlineError, WireFormatError
from contract.status import EventKind
from stage.fetcher import Fetcher
from stage.link_probe import LinkProber
from stage.measurer import Measurer

MAX_WAITING = 32

log = logging.getLogger(__name__)


class CommandServer:
    """Serves the command topic of one device."""

    def __init__(
        self,
        cluster: str,
        device: str,
        connection: Connection,
        fetcher: Fetcher,
        measurer: Measurer,
        prober: LinkProber,
        examine: Callable[[str], Examination],
        report: Callable[[EventKind, str], None],
    ) -> None:
        self._cluster, self._device, self._connection = cluster, device, connection
        self._fetcher, self._measurer, self._prober = fetcher, measurer, prober
        self._examine, self._report = examine, report
        self._waiting: queue.Queue[Delivery | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._serve, name="commands", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Finish the request in hand."""
        try:
            self._waiting.put(None, timeout=5)
        except queue.Full:
            return
        self._thread.join(timeout=5)

    def on_command(self, delivery: Delivery) -> None:
        """Called on the network thread."""
        delivery.ack()  # an asker that hears nothing asks again
        try:
            self._waiting.put_nowait(delivery)
        except queue.Full:
            self._report(EventKind.MESSAGE_REJECTED, f"{delivery.topic}: too many requests wait")

    def _serve(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            try:
                self._obey(delivery)
            except WireFormatError as error:
                self._report(EventKind.MESSAGE_REJECTED, f"{delivery.topic}: {error}")
            except Exception as error:
                log.exception("a request was given up")
                detail = f"{delivery.topic}: {type(error).__name__}: {error}"
                self._report(EventKind.MESSAGE_REJECTED, detail)

    def _obey(self, delivery: Delivery) -> None:
        asker = topics.parse_topic(delivery.topic).sender
        command = parse_command(delivery.payload)
        if asker is None or asker == self._device:
            raise WireFormatError("a device does not ask itself")
        if isinstance(command, Fetch):
            self._fetcher.request(command, asker)
        elif isinstance(command, Measure):
            self._measurer.request(command, asker)
        elif isinstance(command, ProbeLink):
            self._prober.request(command, asker)
        elif isinstance(command, Examine):
            answer = self._examine(command.request_id)
            topic = topics.answer_topic(self._cluster, asker, self._device)
            try:
                self._connection.publish(topic, answer.model_dump_json().encode())
            except ShardlineError as error:
                log.warning("%s was not answered: %s", asker, error)
        else:
            raise WireFormatError(f"{command.kind} is an answer, and nothing was asked")
