"""What the tests of the stage share: a connection in the test's own hands, and messages to send."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from broker.transport import (
    AckToken,
    Callbacks,
    Connect,
    Connection,
    ConnectionSettings,
    Delivery,
    PublishOutcome,
)
from contract import topics
from contract.activation import BatchId, Header, decode, encode
from contract.codec import Codec
from contract.errors import EngineError
from contract.nack import Nack, parse_nack
from contract.plan import Plan
from contract.status import EventKind
from stage.counters import StageCounters
from stage.engine import Engine
from stage.runner import LoadedStage, StageRunner
from tests.tiny import HEIGHT, SIZES, WIDTH, make_tiny_plan, tiny_weights

CLUSTER = "home"
CLIENT = "client-1"
EPOCH = 0xDEADBEEF


@dataclass
class Published:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    future: "Future[PublishOutcome]"


class HandConnection:
    """A connection whose broker is the test: nothing is acknowledged until the test says so."""

    reconnects = 0
    is_connected = True
    max_packet_bytes: int | None = None

    def __init__(self, automatic: bool = False) -> None:
        self.published: list[Published] = []
        self.automatic = automatic
        self.raises: Exception | None = None
        self.dead_topics: set[str] = set()

    def subscribe(self, topic_filter: str, qos: int = 1) -> None: ...

    def close(self, forget_session: bool = False) -> None: ...

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> "Future[PublishOutcome]":
        if self.raises is not None:
            raise self.raises
        future: Future[PublishOutcome] = Future()
        self.published.append(Published(topic, payload, qos, retain, future))
        if self.automatic:
            dead = topic in self.dead_topics
            future.set_result(PublishOutcome.NO_SUBSCRIBER if dead else PublishOutcome.ACCEPTED)
        return future


class GemmEngine:
    """Computes a tiny stage with numpy, and fails or lies when the test asks for it."""

    name = "test"
    version = "1"

    def __init__(self, index: int) -> None:
        self._weight = tiny_weights()[index]
        self._name = ["hidden_0", "hidden_1", "logits"][index]
        self.runs = 0
        self.closed = False
        self.fails: EngineError | None = None
        self.answers: Mapping[str, Any] | None = None

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.runs += 1
        if self.fails is not None:
            raise self.fails
        if self.answers is not None:
            return self.answers
        x = next(iter(inputs.values()))
        if x.dtype == np.uint8:
            x = x.astype(np.float32).reshape(len(x), -1) / np.float32(255)
        return {self._name: np.maximum(x @ self._weight, 0)}

    def close(self) -> None:
        self.closed = True


@dataclass
class Bench:
    """One runner for stage 1 of 3, with everything that it touches in the test's hands."""

    plan: Plan
    device: str
    runner: StageRunner
    connection: HandConnection
    engine: GemmEngine
    counters: StageCounters
    events: list[tuple[EventKind, str]]
    acked: list[str] = field(default_factory=list)

    def header(self, seq: int = 0, **changes: Any) -> Header:
        index = changes.pop("index", 1)
        route = tuple(place.replicas[0].device for place in self.plan.placement)
        return replace(header_of(self.plan, seq, route, index), **changes)

    def topic(self, sender: str = "pi-0", stage: int = 1, plan_id: str | None = None) -> str:
        return topics.input_topic(CLUSTER, self.device, plan_id or self.plan.plan_id, stage, sender)

    def delivery(
        self, payload: bytes, topic: str | None = None, label: str = "input", qos: int = 1
    ) -> Delivery:
        token = AckToken(lambda: self.acked.append(label))
        return Delivery(topic or self.topic(), payload, qos, False, token)

    def message(self, seq: int = 0, images: int = 2, **changes: Any) -> bytes:
        return encode(self.header(seq, **changes), {"hidden_0": hidden(images, seq)})

    def process(self, payload: bytes, topic: str | None = None, label: str = "input") -> None:
        self.runner.process(self.delivery(payload, topic, label), received_us=1)

    @property
    def outputs(self) -> list[Published]:
        return [p for p in self.connection.published if "/in/" in p.topic or "/result/" in p.topic]

    @property
    def nacks(self) -> list[Nack]:
        return [parse_nack(p.payload) for p in self.connection.published if "/nack/" in p.topic]

    def answers_a_good_batch(self, seq: int = 1000) -> None:
        """Send one and check its output and its acknowledgement: the stage is alive and right."""
        self.connection.raises, self.connection.automatic = None, True
        before = len(self.outputs)
        self.process(self.message(seq), label=f"good {seq}")
        assert len(self.outputs) == before + 1
        sent = decode(self.outputs[-1].payload)
        assert sent.header.batch_id == BatchId(EPOCH, seq)
        expected = np.maximum(hidden(2, seq) @ tiny_weights()[1], 0)
        np.testing.assert_allclose(sent.tensors["hidden_1"], expected, rtol=1e-6)
        assert self.acked[-1] == f"good {seq}"


def header_of(plan: Plan, seq: int, route: tuple[str, ...], stage_index: int = 1) -> Header:
    """Of the first attempt at a batch of the test's own client."""
    return Header(
        plan_id=plan.plan_id,
        batch_id=BatchId(EPOCH, seq),
        attempt=0,
        low=0,
        stage_index=stage_index,
        route=route,
        client=CLIENT,
        sent_us=1,
    )


def loaded_stage(plan: Plan, index: int, engine: Engine) -> LoadedStage:
    return LoadedStage(plan, plan.stages[index], engine, plan.max_message_bytes())


def hidden(images: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((images, SIZES[1])).astype(np.float32)


def pictures(images: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (images, 1, HEIGHT, WIDTH), dtype=np.uint8)


def make_bench(
    folder: Path,
    automatic: bool = True,
    receive_maximum: int = 3,
    codecs: tuple[Codec, ...] = ("float32", "float32"),
) -> Bench:
    plan = make_tiny_plan(folder, cluster=CLUSTER, codecs=codecs)
    connection, counters = HandConnection(automatic), StageCounters()
    events: list[tuple[EventKind, str]] = []
    runner = StageRunner(
        "pi-1",
        CLUSTER,
        connection,
        counters,
        lambda kind, detail: events.append((kind, detail)),
        receive_maximum,
    )
    engine = GemmEngine(1)
    runner.load(loaded_stage(plan, 1, engine))
    return Bench(plan, "pi-1", runner, connection, engine, counters, events)


class Listener:
    """A client that keeps what it hears, by topic, and acknowledges it."""

    def __init__(
        self, connect: Connect, name: str, *filters: str, ack: bool = True, **settings: Any
    ) -> None:
        self.heard: list[Delivery] = []
        self._ack = ack
        self._probe = f"probe/{name}"
        self._subscribed = threading.Event()
        self.connection: Connection = connect(
            ConnectionSettings(name=name, **settings), Callbacks(on_delivery=self._hear)
        )
        for topic_filter in (*filters, self._probe):
            self.connection.subscribe(topic_filter)
        # A broker takes our packets in order: when this one comes back, all filters are in place.
        self.connection.publish(self._probe, b"")
        assert self._subscribed.wait(10)

    def _hear(self, delivery: Delivery) -> None:
        if delivery.topic == self._probe:
            delivery.ack()
            self._subscribed.set()
            return
        self.heard.append(delivery)
        if self._ack:
            delivery.ack()

    def of(self, kind: str) -> list[Delivery]:
        return [d for d in list(self.heard) if topics.parse_topic(d.topic).kind == kind]

    def payloads(self, kind: str, read: Callable[[bytes], Any]) -> list[Any]:
        return [read(d.payload) for d in self.of(kind)]

    def close(self) -> None:
        self.connection.close(forget_session=True)
