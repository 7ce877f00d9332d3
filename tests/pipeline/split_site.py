"""A fleet over several Mosquittos of the test's own."""

import secrets
import socket
import threading
from collections import Counter
from pathlib import Path

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.plan import EdgeBroker, Plan, place
from stage.agent import StageAgent, StageSettings
from tests.pipeline.fakes import publish_plan
from tests.stage.harness import Listener
from tests.tiny import make_tiny_plan


class Site:
    """A main broker and two others, three real stages, a client, and somebody who watches."""

    def __init__(self, folder: Path, brokers: dict[str, EmbeddedBroker]) -> None:
        unique = secrets.token_hex(4)
        self.folder, self.brokers, self.cluster = folder, brokers, f"test-{unique}"
        self.connect = Connector(brokers["main"].address)
        self.devices = tuple(f"pi-{index}-{unique}" for index in range(3))
        self.name = f"client-{unique}"
        self.plan = make_tiny_plan(folder, devices=self.devices, cluster=self.cluster)
        self._running: list[tuple[StageAgent, threading.Thread]] = []
        self.observers: dict[str, Listener] = {}

    def split(self, **edges: str | None) -> Plan:
        """The plan with brokers by name or address: ``split(e1="a")``."""
        brokers = [
            EdgeBroker(
                edge=int(edge[1:]),
                address=str(self.brokers[name].address) if name in self.brokers else name,
            )
            for edge, name in edges.items()
            if name is not None
        ]
        return place(
            self.plan, [spot.replicas for spot in self.plan.placement], self.cluster, brokers
        )

    def start(self, elsewhere: bool = True) -> None:
        for device in self.devices:
            agent = StageAgent(
                StageSettings(device, self.folder, self.cluster, connect_timeout_s=10),
                self.connect,
                elsewhere=self.connect.elsewhere if elsewhere else None,
            )
            thread = threading.Thread(target=agent.run, name=device)
            thread.start()
            self._running.append((agent, thread))

    def publish(self, plan: Plan) -> None:
        publish_plan(self.connect, plan, self.cluster)

    def client(self, **settings: object) -> Pipeline:
        settings.setdefault("ready_timeout_s", 15.0)
        return Pipeline(
            ClientSettings(name=self.name, cluster=self.cluster, **settings),  # type: ignore[arg-type]
            self.connect,
            elsewhere=self.connect.elsewhere,
        )

    def observe(self) -> None:
        filters = [topics.input_filter(self.cluster, device) for device in self.devices]
        filters += [topics.result_filter(self.cluster, self.name)]
        for name, each in self.brokers.items():
            listener = Listener(
                Connector(each.address), f"observer-{secrets.token_hex(4)}", *filters
            )
            self.observers[name] = listener

    def listen(self, topic_filter: str) -> Listener:
        """Somebody at the main broker."""
        name = f"ear-{secrets.token_hex(4)}"
        self.observers[name] = Listener(self.connect, name, topic_filter)
        return self.observers[name]

    def carried(self) -> dict[str, Counter[int]]:
        """How many messages of each edge every broker has carried."""
        found = {}
        for name in self.brokers:
            parsed = [topics.parse_topic(d.topic) for d in list(self.observers[name].heard)]
            found[name] = Counter(
                3 if topic.stage_index is None else topic.stage_index
                for topic in parsed
                if topic.sender != topic.to  # a process tests itself at its start
            )
        return found

    def close(self) -> None:
        for listener in self.observers.values():
            listener.close()
        for agent, _ in self._running:
            agent.stop()
        for _, thread in self._running:
            thread.join(timeout=10)
            assert not thread.is_alive()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
