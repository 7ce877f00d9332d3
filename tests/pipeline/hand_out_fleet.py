"""Three devices without shards, and a planner whose messages a test sees and may spoil."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from broker.transport import Callbacks, Connect, Connection, ConnectionSettings, PublishOutcome
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.blob import BlobChunk, parse_blob
from contract.plan import Plan
from contract.status import Event, EventKind
from planner.publish import Publisher
from tests.conftest import StartStage
from tests.pipeline.fakes import make_batches
from tests.stage.harness import Listener
from tests.tiny import make_tiny_plan

DEVICES = ("pi-0", "pi-1", "pi-2")
BALLAST = 3_000_000


class Wire:
    """Sees every message that one process publishes, and may hold, alter or lose it."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.alter: Callable[[str, bytes], bytes | None] = lambda _topic, payload: payload
        self.blob_bytes = 0
        self.chunks: list[tuple[str, BlobChunk]] = []

    def connect(self, settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
        inner, wire = self._connect(settings, callbacks), self

        class Watched:
            def publish(
                self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
            ) -> Future[PublishOutcome]:
                if topics.parse_topic(topic).kind == "blob" and payload[:1] != b"{":
                    wire.blob_bytes += len(payload)
                    chunk = parse_blob(payload)
                    assert isinstance(chunk, BlobChunk)
                    wire.chunks.append((topic, chunk))
                altered = wire.alter(topic, payload)
                if altered is None:
                    future: Future[PublishOutcome] = Future()
                    future.set_result(PublishOutcome.ACCEPTED)
                    return future
                return inner.publish(topic, altered, qos=qos, retain=retain)

            def __getattr__(self, name: str) -> object:
                return getattr(inner, name)

        return Watched()  # type: ignore[return-value]


class Fleet:
    """Three devices with empty disks, and a planner whose wire is watched."""

    def __init__(
        self, folder: Path, cluster: str, start_stage: StartStage, connect: Connect
    ) -> None:
        self.folder, self.cluster, self.connect = folder, cluster, connect
        self.plan = make_tiny_plan(folder / "built", cluster=cluster, ballast_bytes=BALLAST)
        self.built = folder / "built" / self.plan.name
        self.wire = Wire(connect)
        self._start = start_stage
        # Devices keep their names between tests, and the broker is shared: the names are unique.
        self.observer = Listener(connect, f"seer-{cluster}", topics.event_filter(cluster))

    def start(self, device: str, **settings: object) -> object:
        settings.setdefault("cache_dir", self.folder / device)
        return self._start(device, self.folder / "nothing", **settings)

    def hand_out(self, plan: Plan | None = None, patience_s: float = 20.0) -> list[float]:
        shares: list[float] = []
        with Publisher(self.wire.connect, self.cluster, f"planner-{self.cluster}") as publisher:
            publisher.hand_out(
                plan or self.plan, self.built, patience_s, lambda _what, share: shares.append(share)
            )
        return shares

    def publish(self, patience_s: float = 20.0) -> None:
        with Publisher(self.wire.connect, self.cluster, f"planner-{self.cluster}") as publisher:
            publisher.hand_out(self.plan, self.built, patience_s, lambda _what, _share: None)
            publisher.publish(self.plan)
            publisher.wait_until_ready(self.plan, patience_s, lambda _what, _share: None)

    def runs(self, count: int = 10) -> None:
        settings = ClientSettings(name=f"client-{self.cluster}", cluster=self.cluster)
        with Pipeline(settings, self.connect) as pipeline:
            pipeline.open()
            assert len(list(pipeline.run(make_batches(count)))) == count
            assert pipeline.counts(finished=True).delivered == count

    def events(self, kind: EventKind) -> list[str]:
        events = self.observer.payloads("event", Event.model_validate_json)
        return [event.detail for event in events if event.kind is kind]

    def weights_in_cache(self, device: str, index: int) -> bool:
        blob = self.folder / device / "blobs" / self.plan.stages[index].weights.sha256
        return blob.exists()


def sizes(plan: Plan, index: int) -> int:
    return plan.stages[index].graph.size_bytes + plan.stages[index].weights.size_bytes
