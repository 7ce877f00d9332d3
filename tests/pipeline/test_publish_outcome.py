"""What the client does about the broker's own answer to a batch that it sent."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from broker.memory import MemoryBroker
from broker.transport import Callbacks, Connection, ConnectionSettings, PublishOutcome
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.errors import NotAuthorisedError
from contract.plan import Plan
from tests.conftest import StartStage
from tests.pipeline.fakes import make_batches, publish_plan
from tests.tiny import make_tiny_plan

Answer = Callable[[str], Future[PublishOutcome] | None]


class Answering:
    """A connection of the memory broker whose publishes a test may answer in the broker's place."""

    def __init__(self, inner: Connection, answer: Answer) -> None:
        self._inner, self._answer = inner, answer

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> Future[PublishOutcome]:
        answered = self._answer(topic)
        return answered or self._inner.publish(topic, payload, qos=qos, retain=retain)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


class Away(Answering):
    """A connection that says, when told so, that the broker is away."""

    def __init__(self, inner: Connection) -> None:
        super().__init__(inner, lambda _topic: None)
        self.is_connected = True


@pytest.fixture
def run(tmp_path: Path, cluster: str, start_stage: StartStage) -> Callable[[Answer], list[object]]:
    memory = MemoryBroker()
    plan: Plan = make_tiny_plan(tmp_path, cluster=cluster)
    for device in ("pi-0", "pi-1", "pi-2"):
        start_stage(device, tmp_path, connect=memory.connect)
    publish_plan(memory.connect, plan, cluster)

    def go(answer: Answer) -> list[object]:
        def connect(settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
            return Answering(memory.connect(settings, callbacks), answer)  # type: ignore[return-value]

        with Pipeline(ClientSettings(name="feeder", cluster=cluster), connect) as pipeline:
            pipeline.open()
            return list(pipeline.run(make_batches(3)))

    return go


def test_a_client_that_may_not_publish_is_told_and_does_not_retry_for_ever(
    run: Callable[[Answer], list[object]],
) -> None:
    def refuse(topic: str) -> Future[PublishOutcome] | None:
        if "/in/" not in topic:
            return None
        refused: Future[PublishOutcome] = Future()
        refused.set_exception(NotAuthorisedError(f"refused {topic}"))
        return refused

    with pytest.raises(NotAuthorisedError, match="/in/"):
        run(refuse)


def test_a_batch_that_reached_nobody_is_sent_again_soon(
    run: Callable[[Answer], list[object]],
) -> None:
    """Long before its first deadline, which is 30 s away."""
    lost = []

    def lose_the_first(topic: str) -> Future[PublishOutcome] | None:
        if "/in/" not in topic or lost:
            return None
        lost.append(topic)
        nobody: Future[PublishOutcome] = Future()
        nobody.set_result(PublishOutcome.NO_SUBSCRIBER)
        return nobody

    ends = run(lose_the_first)
    assert [type(end) for end in ends] == [BatchResult] * 3
    assert {end.attempt for end in ends if isinstance(end, BatchResult)} == {0, 1}


def test_nothing_is_fed_while_the_broker_is_away(
    tmp_path: Path, cluster: str, start_stage: StartStage
) -> None:
    """Else a batch timeout would empty the source into a queue that grows until it is back."""
    memory = MemoryBroker()
    plan = make_tiny_plan(tmp_path, cluster=cluster)
    for device in ("pi-0", "pi-1", "pi-2"):
        start_stage(device, tmp_path, connect=memory.connect)
    publish_plan(memory.connect, plan, cluster)
    connections: list[Away] = []

    def connect(settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        connections.append(Away(memory.connect(settings, callbacks)))
        return connections[0]  # type: ignore[return-value]

    taken: list[Batch] = []

    def source() -> Iterator[Batch]:
        for batch in make_batches(1000):
            taken.append(batch)
            yield batch

    settings = ClientSettings(name="feeder", cluster=cluster, window=2, batch_timeout_s=0.2)
    with Pipeline(settings, connect) as pipeline:
        pipeline.open()
        ends = pipeline.run(source())
        next(ends)
        connections[0].is_connected = False
        before = len(taken)
        threading.Timer(1.0, lambda: setattr(connections[0], "is_connected", True)).start()
        next(ends)
        next(ends)
        next(ends)  # the first that was fed after the second of absence
        assert len(taken) <= before + 4
