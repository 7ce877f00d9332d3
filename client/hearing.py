"""Tells what has been heard apart, and hands each thing to who acts upon it.

Owned by the pipeline's thread. What a result, a refusal or a status means for a batch is said in
`receiving.py`; here, what a plan means for all of them, and what of an earlier start counts.
"""

import logging
import time
from collections.abc import Callable

from broker.reporter import EventReporter
from broker.split import SplitConnection
from broker.transport import Delivery
from client.batch import NobodyThere, Stop
from client.feed import FeedWatch
from client.inbox import Heard, Inbox
from client.journal import Journal
from client.receiving import Receiver
from client.record import Settling
from client.sending import Sender
from client.tracer import Tracer
from contract import topics
from contract.errors import JournalError, PlanError, WireFormatError
from contract.nack import parse_nack
from contract.plan import MAX_PLAN_BYTES, parse_plan
from contract.status import EventKind, parse_status

MAX_EARLY_RESULTS = 32
"""Results of an earlier start that are held until the plan is known: half of the receive maximum,
so that the plan gets through. What is beyond is dropped, and its batch sent again."""

log = logging.getLogger(__name__)

OnResult = Callable[[bytes, str | None], None]
"""Takes a result's payload and the sender that its topic names.

Raises:
    WireFormatError: it is not acceptable.
"""


class Hearing:
    """What of a pipeline hears."""

    def __init__(
        self,
        connection: SplitConnection,
        inbox: Inbox,
        watch: FeedWatch,
        journal: Journal | None,
        sender: Sender,
        receiver: Receiver,
        on_result: OnResult,
        settling: Settling,
        tracer: Tracer,
        reporter: EventReporter,
    ) -> None:
        """``on_result``: what a result of the plan that is being fed goes to."""
        self._connection, self._inbox, self._watch = connection, inbox, watch
        self._journal, self._sender, self._receiver = journal, sender, receiver
        self._on_result, self._settling = on_result, settling
        self._tracer, self._reporter = tracer, reporter
        self._early: list[Delivery] = []
        self.rejected = 0
        """Messages that were not acceptable."""

    def hear(self, item: Heard) -> None:
        """One thing that has been heard, of whatever kind.

        Raises:
            NotAuthorisedError, NameTakenError: a broker does not let us feed this pipeline.
            BrokerUnreachableError: a plan names a broker for an edge that does not answer.
            JournalError: the journal cannot be written, or is of another model.
        """
        if isinstance(item, bool):
            self._on_connected(session_present=item)
            return
        if item is None or isinstance(item, Stop):
            return  # of a pipeline of tokens
        if isinstance(item, BaseException):
            raise item  # a broker does not let us feed this pipeline: retrying cannot help
        if isinstance(item, NobodyThere):
            self._receiver.on_nobody_there(item)
            return
        try:
            topic = topics.parse_topic(item.topic)
            if topic.kind in ("result", "nack") and not self._watch.is_known:
                if topic.kind == "result" and self._holds_early(item):
                    return
                raise WireFormatError("left over from an earlier run of this name")
            if item.retained and topic.kind in ("result", "nack"):
                raise WireFormatError("retained, which no device of ours does")
            if topic.kind == "result":
                self._on_result(item.payload, topic.sender)
            elif topic.kind == "nack":
                self._receiver.on_nack(parse_nack(item.payload, topic.sender))
            elif topic.kind == "status":
                self._receiver.on_status(parse_status(item.payload, topic.sender))
            elif topic.kind == "plan":
                self._on_plan(item)
        except WireFormatError as error:
            self.rejected += 1
            self._reporter.report(EventKind.MESSAGE_REJECTED, f"{item.topic}: {error}")
        self._settling.hold(item)

    def _holds_early(self, delivery: Delivery) -> bool:
        """Keep what the broker has kept for us, until we know the plan that it is judged by."""
        if self._journal is None or len(self._early) >= MAX_EARLY_RESULTS:
            return False
        self._early.append(delivery)
        return True

    def _on_connected(self, session_present: bool) -> None:
        if self._watch.is_known and not session_present:
            log.warning("the broker forgot our session: sending all open batches again")
            self._sender.send_again_now("the broker forgot our session")

    def _on_plan(self, delivery: Delivery) -> None:
        if not delivery.payload:
            return  # retired; devices will say that they are idle
        try:
            plan = parse_plan(delivery.payload, delivery.topic)
        except PlanError as error:
            raise WireFormatError(str(error)) from error  # what was published is no plan at all
        if not plan.placement:
            raise WireFormatError("a plan without devices; hand it out with `shardline publish`")
        if self._journal is not None:
            if plan.decoding is not None:
                raise JournalError(
                    f"plan {plan.name} is a language model: a journal holds images and their "
                    "answers; run without one"
                )
            self._journal.take_plan(plan)
        # All of them, not our own two: we pause while one is away, and hear which one forgot us.
        self._inbox.max_bytes = max(MAX_PLAN_BYTES, plan.max_message_bytes())
        moved = self._connection.use(plan.edge_addresses(), plan.num_stages)
        self._tracer.follow(plan)
        if self._watch.take_plan(plan, time.monotonic()):
            self._reporter.report(EventKind.PLAN_CHANGED, f"now plan {plan.plan_id} ({plan.name})")
            self._sender.send_again_now("the plan changed")
        elif moved:
            self._sender.send_again_now("an edge has another broker")
        early, self._early = self._early, []
        for result in early:
            self.hear(result)
