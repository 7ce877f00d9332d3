"""A plan's stages as threads of this process, over the in-memory broker: no network at all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.memory import MemoryBroker
from client.journal import Journal
from client.pipeline import Pipeline
from client.settings import ClientSettings, random_client_name
from contract.plan import Plan
from planner.publish import Publisher, place_on
from stage.agent import StageAgent, StageSettings

CLUSTER = "local"


@contextmanager
def local_pipeline(
    plan: Plan,
    folder: Path,
    *,
    engine: str,
    threads: int,
    window: int | None,
    journal: Journal | None = None,
) -> Iterator[Pipeline]:
    """An open pipeline whose devices are threads, one for each stage.

    Raises:
        ShardError: a shard is missing, corrupt, or of another plan.
    """
    broker = MemoryBroker()
    devices = [f"thread-{index}" for index in range(plan.num_stages)]
    placed = place_on(plan, devices, CLUSTER)
    agents = [
        StageAgent(
            StageSettings(
                device, folder, CLUSTER, engine=engine, threads=threads, remember_crashes=False
            ),
            broker.connect,
        )
        for device in devices
    ]
    workers = [
        threading.Thread(target=agent.run, name=device, daemon=True)
        for agent, device in zip(agents, devices, strict=True)
    ]
    for worker in workers:
        worker.start()
    try:
        with Publisher(broker.connect, CLUSTER, "planner") as publisher:
            publisher.publish(placed)
        name = random_client_name() if journal is None else journal.client_name()
        # Nobody else can listen to a broker in this process' memory.
        settings = ClientSettings(name=name, cluster=CLUSTER, window=window, traces=False)
        with Pipeline(settings, broker.connect, journal=journal) as pipeline:
            pipeline.open()
            yield pipeline
    finally:
        for agent in agents:
            agent.stop()
        for worker in workers:
            worker.join(timeout=10)
