"""What the network threads hand to the one thread that serves a device. They only sort and enqueue.

Bounded whatever arrives: the newest plan replaces one that was not read yet; batches are held back
by the receive maximum, and where a broker exceeds that (Mosquitto 2.0.11 does) by the window and a
number.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from broker.transport import Delivery
from contract import topics
from contract.errors import BrokerError
from contract.status import EventKind
from stage.admission import kind_of, unwelcome
from stage.counters import StageCounters
from stage.work import now_us

MAX_WAITING = 256
"""Batches and statuses not begun: more than the largest window (client/settings.py). Mosquitto
2.0.11 forgets the receive maximum after the first acknowledgement (measured: 67 of 100 messages out
where 3 were allowed; its #2306, fixed in 2.0.13): there, only the window and this number hold."""
LONGEST_WAIT_S = 1.0
"""Python handles a signal in the main thread alone, and a blocking call there goes on where the
kernel gave the signal to another thread, as it does to a process that was just continued."""

Hear = Callable[[Delivery], None]


@dataclass(frozen=True, slots=True)
class Received:
    """A message on an input topic, or on none of ours."""

    delivery: Delivery
    received_us: int


class NewPlan:
    """There is a plan to be read: :meth:`StageInbox.take_plan`."""


class Stop:
    """The device is to end."""


Item = Received | Delivery | NewPlan | Stop | BrokerError
"""What comes out; a bare delivery is a status of this device."""


class StageInbox:
    """One device's queue. ``blob`` and ``command`` go straight on, to threads of their own;
    questions for the time are answered before anything else is heard.
    """

    def __init__(
        self,
        device: str,
        counters: StageCounters,
        report: Callable[[EventKind, str], None],
    ) -> None:
        self._device, self._counters, self._report = device, counters, report
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._plan: bytes | None = None
        self._is_obeying = False
        self.max_input_bytes: Callable[[], int | None] = lambda: None
        self.on_own_blob: Hear = Delivery.ack
        self.on_blob: Hear = Delivery.ack
        self.on_command: Hear = Delivery.ack
        self.on_clock: Callable[[Delivery], str | None] = lambda _delivery: None
        """Answers; says what is wrong with the question, if anything."""

    def __len__(self) -> int:
        """How much waits."""
        return self._queue.qsize()

    def hear(self, delivery: Delivery) -> None:
        """Take a delivery, on a network thread."""
        kind = kind_of(delivery.topic)
        problem = unwelcome(delivery, kind, self.max_input_bytes())
        if problem is not None:
            self._reject(delivery, problem)
        elif kind == "blob":
            own = topics.parse_topic(delivery.topic).sender == self._device
            (self.on_own_blob if own else self.on_blob)(delivery)
        elif kind == "command":
            self.on_command(delivery)
        elif kind == "clock":
            self._hear_clock(delivery)
        elif kind == "plan":
            self._hear_plan(delivery)
        elif len(self) >= MAX_WAITING:
            self._reject(delivery, f"{MAX_WAITING} messages wait already")
        elif kind == "status":
            self._queue.put(delivery)
        else:
            self._queue.put(Received(delivery, now_us()))

    def _hear_clock(self, delivery: Delivery) -> None:
        problem = self.on_clock(delivery)
        if problem is None:
            delivery.ack()
        else:
            self._reject(delivery, problem)

    def _hear_plan(self, delivery: Delivery) -> None:
        with self._lock:
            replaces = self._plan is not None
            self._plan = delivery.payload
        delivery.ack()  # it is retained: what is lost with us comes with the next connection
        if not replaces:
            self._queue.put(NewPlan())

    def _reject(self, delivery: Delivery, why: str) -> None:
        self._counters.add(rejected=1)
        self._report(EventKind.MESSAGE_REJECTED, f"{delivery.topic}: {why}")
        delivery.ack()

    def fail(self, error: BrokerError) -> None:
        """The device cannot go on, for this reason."""
        self._queue.put(error)

    def stop(self) -> None:
        """Let whoever waits go. Safe in a signal handler."""
        self._queue.put(Stop())

    def take_plan(self) -> bytes | None:
        """The newest plan, if it was not taken yet; empty when the plan was retired."""
        with self._lock:
            plan, self._plan = self._plan, None
            self._is_obeying = plan is not None
        return plan

    def plan_obeyed(self) -> None:
        """The plan that was taken is what is served now."""
        self._is_obeying = False

    @property
    def has_new_plan(self) -> bool:
        """Whether a plan was heard that is not served yet."""
        return self._plan is not None or self._is_obeying

    def next(self, timeout_s: float = LONGEST_WAIT_S) -> Item | None:
        """What is to be done next; None if nothing has come in time, a second at most."""
        try:
            return self._queue.get(timeout=min(timeout_s, LONGEST_WAIT_S))
        except queue.Empty:
            return None
