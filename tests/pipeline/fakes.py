"""A device whose behaviour a test writes, batches with known answers, and a run that is judged."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from client.batch import Batch, BatchResult, DeadBatch, Ended
from client.pipeline import Pipeline
from contract import topics
from contract.activation import Activation, Header, decode, encode
from contract.nack import Nack, NackReason
from contract.plan import Plan, Replica, place
from contract.status import DeviceState, DeviceStatus, ShardState
from tests.tiny import HEIGHT, WIDTH, tiny_answer, tiny_weights

OUTPUTS = ("hidden_0", "hidden_1", "logits")


class FakeDevice:
    """Says that it is ready for a stage, and does with each batch what ``behave`` says.

    It acknowledges each delivery itself, after ``behave`` has returned.
    """

    def __init__(
        self,
        connect: Connect,
        cluster: str,
        plan: Plan,
        device: str,
        behave: "Callable[[FakeDevice, Activation], None]",
    ) -> None:
        self.plan, self.device, self._cluster = plan, device, cluster
        self._behave = behave
        self.seen: list[Header] = []
        spec = plan.stage_of(device)
        assert spec is not None
        self.stage_index = spec.stage_index
        self.boot = secrets.randbits(53)
        self.connection = connect(
            ConnectionSettings(name=device), Callbacks(on_delivery=self._receive)
        )
        self.connection.subscribe(topics.input_filter(cluster, device))
        self.announce(DeviceState.ONLINE)

    def announce(self, state: DeviceState, topic_of: str | None = None) -> None:
        status = DeviceStatus(
            device=self.device,
            state=state,
            boot=self.boot,
            shard=ShardState.READY,
            plan_id=self.plan.plan_id,
            stage_index=self.stage_index,
        )
        topic = topics.status_topic(self._cluster, topic_of or self.device)
        self.connection.publish(topic, status.model_dump_json().encode(), retain=True)

    def _receive(self, delivery: Delivery) -> None:
        activation = decode(delivery.payload)
        self.seen.append(activation.header)
        self._behave(self, activation)
        delivery.ack()

    def output(self, activation: Activation, **changes: object) -> bytes:
        """The right output of this stage, or with a header that the test has changed."""
        x = next(iter(activation.tensors.values()))
        if self.stage_index == 0:
            x = x.astype(np.float32).reshape(len(x), -1) / np.float32(255)
        answer = np.maximum(x @ tiny_weights()[self.stage_index], 0)
        header = replace(activation.header, stage_index=self.stage_index + 1, **changes)  # type: ignore[arg-type]
        return encode(header, {OUTPUTS[self.stage_index]: answer})

    def send_on(self, header: Header, payload: bytes) -> None:
        index = self.stage_index + 1
        if index == len(header.route):
            topic = topics.result_topic(self._cluster, header.client, self.device)
        else:
            topic = topics.input_topic(
                self._cluster, header.route[index], header.plan_id, index, self.device
            )
        self.connection.publish(topic, payload)

    def answer(self, activation: Activation) -> None:
        self.send_on(activation.header, self.output(activation))

    def refuse(self, activation: Activation, reason: NackReason) -> None:
        header = activation.header
        nack = Nack(
            plan_id=header.plan_id,
            epoch=f"{header.batch_id.epoch:016x}",
            seq=header.batch_id.seq,
            attempt=header.attempt,
            stage_index=self.stage_index,
            device=self.device,
            reason=reason,
            route=header.route,
            detail="as the test wants it",
        )
        topic = topics.nack_topic(self._cluster, header.client, self.device)
        self.connection.publish(topic, nack.model_dump_json().encode())

    def attempts(self, seq: int) -> list[int]:
        return [header.attempt for header in self.seen if header.batch_id.seq == seq]

    def close(self) -> None:
        self.connection.close(forget_session=True)


def make_batches(count: int, size: int = 2, seed: int = 1) -> list[Batch]:
    generator = np.random.default_rng(seed)
    return [
        Batch(
            {"image": generator.integers(0, 256, (size, 1, HEIGHT, WIDTH), dtype=np.uint8)},
            tuple(f"{index}/{i}" for i in range(size)),
        )
        for index in range(count)
    ]


def is_answer_of(result: BatchResult, seed: int = 0) -> bool:
    expected = tiny_answer(np.asarray(result.batch.tensors["image"]), seed)
    got = np.asarray(result.outputs["logits"])
    return got.shape == expected.shape and bool(np.allclose(got, expected, rtol=1e-5, atol=1e-6))


def publish_plan(connect: Connect, plan: Plan, cluster: str) -> None:
    connection = connect(
        ConnectionSettings(name=f"planner-{secrets.token_hex(4)}"),
        Callbacks(on_delivery=lambda delivery: delivery.ack()),
    )
    topic = topics.plan_topic(cluster)
    connection.publish(topic, plan.to_json().encode(), retain=True).result(timeout=20)
    connection.close(forget_session=True)


def place_on(plan: Plan, devices: Sequence[str | Sequence[str]], cluster: str) -> Plan:
    groups = [[names] if isinstance(names, str) else names for names in devices]
    return place(plan, [[Replica(device=name) for name in names] for names in groups], cluster)


class Run:
    """All ends of a run, with the promise checked: each batch one end, each answer right."""

    def __init__(self, pipeline: Pipeline, batches: Iterable[Batch]) -> None:
        self._pipeline = pipeline
        self.submitted = list(batches)
        self.ends: list[Ended] = []

    def go(self, after: Callable[[int], None] = lambda _count: None) -> "Run":
        for end in self._pipeline.run(self.submitted):
            self.ends.append(end)
            after(len(self.ends))
        return self

    @property
    def results(self) -> list[BatchResult]:
        return [end for end in self.ends if isinstance(end, BatchResult)]

    @property
    def dead(self) -> list[DeadBatch]:
        return [end for end in self.ends if isinstance(end, DeadBatch)]

    def keeps_the_promise(self, dead: int = 0) -> None:
        count = len(self.submitted)
        assert sorted(end.batch_id.seq for end in self.ends) == list(range(count))
        for end in self.ends:
            assert end.batch is self.submitted[end.batch_id.seq]
        assert all(is_answer_of(result) for result in self.results)
        counts = self._pipeline.counts(finished=True)
        assert counts.lost == 0
        assert (counts.submitted, counts.delivered, counts.dead) == (count, count - dead, dead)
        assert len(self.dead) == dead
