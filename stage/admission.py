"""What a device lets into its queue, judged before anything of a message is read. Pure.

The queue is bounded by the receive maximum in number, and here in bytes: three messages as large as
MQTT allows would fill a small board's memory.
"""

from broker.transport import Delivery
from contract import topics
from contract.clock import MAX_CLOCK_BYTES
from contract.command import MAX_COMMAND_BYTES
from contract.errors import WireFormatError
from contract.plan import MAX_PLAN_BYTES
from contract.status import MAX_STATUS_BYTES

LIMITS: dict[str, int | None] = {
    "plan": MAX_PLAN_BYTES,
    "status": MAX_STATUS_BYTES,
    "command": MAX_COMMAND_BYTES,
    "clock": MAX_CLOCK_BYTES,
    "blob": None,  # pieces, and what a probe of the link sends to itself: fetcher, link_probe
}
"""Bytes of what is no activation."""
RETAINED = frozenset({"plan", "status"})
"""Kinds that a sender of ours retains. Anything else that is retained was left there on purpose, to
arrive again at every start."""
AT_QOS_0 = frozenset({"plan", "blob", "clock"})
"""Pieces of shards; the plan, of which only the newest is kept (`stage/inbox.py`); questions for
the time, which are answered on the spot."""


def kind_of(topic: str) -> str:
    """The kind of a topic; what is none of ours goes to the runner, which rejects it."""
    try:
        return topics.parse_topic(topic).kind
    except WireFormatError:
        return "input"


def unwelcome(delivery: Delivery, kind: str, max_input_bytes: int | None) -> str | None:
    """Why a message is not let in, None if it is.

    ``max_input_bytes`` is the plan's largest message; None where no plan says.
    """
    if delivery.retained and kind not in RETAINED:
        return "retained, which nobody of ours does"
    if delivery.qos == 0 and kind not in AT_QOS_0:
        # The receive maximum does not bound QoS 0: queueing it would let anyone fill our memory
        return "sent at QoS 0, expected QoS 1"
    size = len(delivery.payload)
    limit = LIMITS.get(kind, max_input_bytes)
    if limit is not None and size > limit:
        return f"message of {size:,} bytes: expected at most {limit:,}"
    return None
