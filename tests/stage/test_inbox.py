"""The queue of a device is bounded, whoever sends what."""

import subprocess
import sys

from broker.transport import AckToken, Delivery
from contract import topics
from contract.errors import NameTakenError
from contract.status import EventKind
from stage.counters import StageCounters
from stage.inbox import MAX_WAITING, NewPlan, Received, StageInbox, Stop

INPUT = topics.input_topic("home", "pi-1", "0" * 16, 1, "pi-0")
PLAN = topics.plan_topic("home")


class Yard:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.acked: list[str] = []
        self.counters = StageCounters()
        self.inbox = StageInbox("pi-1", self.counters, self._report)

    def _report(self, kind: EventKind, detail: str) -> None:
        assert kind is EventKind.MESSAGE_REJECTED
        self.events.append(detail)

    def hear(self, topic: str, payload: bytes = b"", qos: int = 1) -> None:
        label = payload.decode()
        self.inbox.hear(
            Delivery(topic, payload, qos, False, AckToken(lambda: self.acked.append(label)))
        )


def test_batches_come_out_in_order_and_unacknowledged() -> None:
    yard = Yard()
    for index in range(3):
        yard.hear(INPUT, b"%d" % index)
    taken = [yard.inbox.next(0) for _ in range(4)]
    assert taken[3] is None
    assert [item.delivery.payload for item in taken[:3] if isinstance(item, Received)] == [
        b"0",
        b"1",
        b"2",
    ]
    assert yard.acked == []


def test_more_than_a_broker_may_send_is_rejected_and_told() -> None:
    yard = Yard()
    for index in range(MAX_WAITING + 5):
        yard.hear(INPUT, b"%d" % index)
    assert len(yard.inbox) == MAX_WAITING
    assert yard.acked == [str(MAX_WAITING + i) for i in range(5)]  # the client sends them again
    assert yard.counters.snapshot().rejected == 5
    assert "wait already" in yard.events[0]


def test_a_batch_at_qos_0_is_rejected() -> None:
    yard = Yard()
    yard.hear(INPUT, b"x", qos=0)
    assert len(yard.inbox) == 0
    assert "QoS 0" in yard.events[0]


def test_of_many_plans_only_the_newest_is_kept() -> None:
    yard = Yard()
    yard.hear(PLAN, b"first", qos=0)
    for index in range(1000):
        yard.hear(PLAN, b"plan %d" % index, qos=index % 2)
    assert len(yard.inbox) == 1
    assert isinstance(yard.inbox.next(0), NewPlan)
    assert yard.inbox.take_plan() == b"plan 999"
    assert yard.inbox.take_plan() is None
    assert len(yard.acked) == 1001
    yard.hear(PLAN, b"", qos=0)  # retired: that is news, too
    assert isinstance(yard.inbox.next(0), NewPlan)
    assert yard.inbox.take_plan() == b""


def test_a_plan_and_a_batch_keep_their_order() -> None:
    yard = Yard()
    yard.hear(INPUT, b"before")
    yard.hear(PLAN, b"plan", qos=0)
    yard.hear(INPUT, b"after")
    assert [type(yard.inbox.next(0)) for _ in range(3)] == [Received, NewPlan, Received]


def test_blobs_and_commands_go_to_their_own_threads() -> None:
    yard = Yard()
    heard: list[str] = []
    yard.inbox.on_blob = lambda d: heard.append("blob")
    yard.inbox.on_own_blob = lambda d: heard.append("own blob")
    yard.inbox.on_command = lambda d: heard.append("command")
    yard.hear(topics.blob_topic("home", "pi-1", "planner"), qos=0)
    yard.hear(topics.blob_topic("home", "pi-1", "pi-1"))
    yard.hear(topics.command_topic("home", "pi-1", "planner"))
    assert heard == ["blob", "own blob", "command"]
    assert len(yard.inbox) == 0


def test_a_failure_and_the_end_come_out_too() -> None:
    yard = Yard()
    yard.inbox.fail(NameTakenError("x"))
    yard.inbox.stop()
    assert isinstance(yard.inbox.next(0), NameTakenError)
    assert isinstance(yard.inbox.next(0), Stop)


def test_a_foreign_topic_is_left_to_the_runner_which_rejects_it() -> None:
    yard = Yard()
    yard.hear("somebody/else", b"x")
    assert isinstance(yard.inbox.next(0), Received)


SIGNALLED_ELSEWHERE = """
import signal, threading
from stage.counters import StageCounters
from stage.inbox import StageInbox, Stop

inbox = StageInbox("pi-0", StageCounters(), print)
signal.signal(signal.SIGTERM, lambda *_: inbox.stop())

def hit_this_thread():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Timer(0.3, hit_this_thread).start()
while not isinstance(inbox.next(), Stop):
    pass
"""


def test_a_signal_that_another_thread_got_ends_the_wait() -> None:
    """As happens to a process that is continued and stopped: `docker unpause`, `docker stop`."""
    subprocess.run([sys.executable, "-c", SIGNALLED_ELSEWHERE], check=True, timeout=60)
