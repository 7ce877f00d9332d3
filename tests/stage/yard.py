"""One device on a broker in memory, and a test that is all the others."""

from pathlib import Path
from typing import Any

import numpy as np

from broker.memory import MemoryBroker, MemoryConnection
from broker.transport import Callbacks, Connection, ConnectionSettings
from contract import topics
from contract.activation import decode, encode
from contract.nack import Nack, parse_nack
from contract.plan import Plan
from contract.status import (
    DeviceState,
    DeviceStatus,
    Event,
    EventKind,
    ShardState,
    parse_status,
)
from stage.agent import StageAgent
from tests.conftest import StartStage, eventually
from tests.stage.harness import CLIENT, Listener, header_of, hidden
from tests.tiny import make_tiny_plan, tiny_weights


class Yard:
    """One agent, pi-1, on a broker in memory; the test is its planner, its client and its next."""

    def __init__(
        self, folder: Path, cluster: str, start_stage: StartStage, broker: MemoryBroker
    ) -> None:
        self.folder, self.cluster, self.broker = folder, cluster, broker
        self.plan = make_tiny_plan(folder, cluster=cluster)
        self.connections: list[MemoryConnection] = []
        self.observer = Listener(
            broker.connect,
            "observer",
            topics.status_filter(cluster),
            topics.metrics_filter(cluster),
            topics.event_filter(cluster),
            topics.nack_filter(cluster, CLIENT),
            topics.result_filter(cluster, CLIENT),
            topics.input_filter(cluster, "pi-2"),
            topics.input_filter(cluster, "pi-0"),
        )
        self._start = start_stage

    def connect(self, settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        connection = self.broker.connect(settings, callbacks)
        assert isinstance(connection, MemoryConnection)
        self.connections.append(connection)
        return connection

    def start(self, **settings: Any) -> StageAgent:
        settings.setdefault("shards_dir", self.folder)
        shards_dir = settings.pop("shards_dir")
        return self._start("pi-1", shards_dir, connect=self.connect, **settings)

    def publish_plan(self, plan: Plan | None) -> None:
        payload = b"" if plan is None else plan.to_json().encode()
        self.send(topics.plan_topic(self.cluster), payload, retain=True)

    def send(self, topic: str, payload: bytes, **more: Any) -> None:
        self.observer.connection.publish(topic, payload, **more)

    @property
    def statuses(self) -> list[DeviceStatus]:
        return self.observer.payloads("status", parse_status)

    @property
    def events(self) -> list[Event]:
        return self.observer.payloads("event", Event.model_validate_json)

    @property
    def rejections(self) -> list[Event]:
        return [e for e in self.events if e.kind is EventKind.MESSAGE_REJECTED]

    @property
    def nacks(self) -> list[Nack]:
        return self.observer.payloads("nack", parse_nack)

    def wait_for(self, shard: ShardState, plan: Plan | None = None) -> DeviceStatus:
        def reached() -> bool:
            last = self.statuses[-1:] or [None]
            return (
                last[0] is not None
                and last[0].state is DeviceState.ONLINE
                and last[0].shard is shard
                and (plan is None or last[0].plan_id == plan.plan_id)
            )

        eventually(reached, f"the shard is {shard}")
        return self.statuses[-1]

    def send_batch(
        self, seq: int = 0, plan: Plan | None = None, images: int = 2, **more: Any
    ) -> None:
        plan = plan or self.plan
        header = header_of(plan, seq, ("pi-0", "pi-1", "pi-2"))
        topic = topics.input_topic(self.cluster, "pi-1", plan.plan_id, 1, "pi-0")
        self.send(topic, encode(header, {"hidden_0": hidden(images, seq)}), **more)

    def outputs(self) -> list[Any]:
        return self.observer.payloads("input", decode)

    def answers(self, seq: int, plan: Plan | None = None, seed: int = 0, images: int = 2) -> None:
        self.send_batch(seq, plan, images)
        eventually(
            lambda: any(o.header.batch_id.seq == seq for o in self.outputs()),
            f"batch {seq} is answered; refused: {self.nacks}",
        )
        [output] = [o for o in self.outputs() if o.header.batch_id.seq == seq]
        expected = np.maximum(hidden(images, seq) @ tiny_weights(seed)[1], 0)
        np.testing.assert_allclose(output.tensors["hidden_1"], expected, rtol=1e-5, atol=1e-6)
