"""How a stage begins, with a real broker: what its session kept, and another of its name."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from contract import topics
from contract.activation import decode, encode
from contract.nack import parse_nack
from contract.plan import Plan
from contract.status import DeviceState, ShardState, parse_status
from stage.agent import StageAgent, StageSettings
from tests.conftest import eventually
from tests.pipeline.fakes import publish_plan
from tests.stage.harness import CLIENT, Listener, header_of, hidden
from tests.tiny import make_tiny_plan


def send_batches(observer: Listener, cluster: str, plan: Plan, count: int) -> None:
    route = tuple(place.replicas[0].device for place in plan.placement)
    topic = topics.input_topic(cluster, route[1], plan.plan_id, 1, route[0])
    for seq in range(count):
        payload = encode(header_of(plan, seq, route), {"hidden_0": hidden(2, seq)})
        observer.connection.publish(topic, payload).result(timeout=5)


def run_agent(device: str, folder: Path, cluster: str, connect: Connect) -> StageAgent:
    agent = StageAgent(
        StageSettings(device=device, shards_dir=folder, cluster=cluster, connect_timeout_s=10),
        connect,
    )
    threading.Thread(target=agent.run, name=device).start()
    return agent


def test_a_stage_that_starts_again_refuses_nothing_of_what_waited_for_it(
    tmp_path: Path, connect: Connect, cluster: str, unique: str
) -> None:
    """More than its receive maximum: they come before the plan, and block it at QoS 1."""
    devices = tuple(f"pi-{index}-{unique}" for index in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    observer = Listener(
        connect,
        f"observer-{unique}",
        topics.status_filter(cluster),
        topics.nack_filter(cluster, CLIENT),
        topics.input_filter(cluster, devices[2]),
    )

    def last_status() -> tuple[DeviceState, ShardState] | None:
        statuses = observer.payloads("status", parse_status)
        return (statuses[-1].state, statuses[-1].shard) if statuses else None

    publish_plan(connect, plan, cluster)
    agent = run_agent(devices[1], tmp_path, cluster, connect)
    eventually(lambda: last_status() == (DeviceState.ONLINE, ShardState.READY), "it is ready")
    agent.stop()
    eventually(lambda: last_status() == (DeviceState.STOPPED, ShardState.IDLE), "it has ended")
    send_batches(observer, cluster, plan, 10)
    again = run_agent(devices[1], tmp_path, cluster, connect)
    eventually(lambda: len(observer.of("input")) == 10, "all are answered")
    assert [decode(d.payload).header.batch_id.seq for d in observer.of("input")] == list(range(10))
    assert observer.payloads("nack", parse_nack) == []
    again.stop()
    eventually(lambda: last_status() == (DeviceState.STOPPED, ShardState.IDLE), "it has ended")
    observer.close()


def test_the_second_stage_of_a_name_ends_with_a_clear_text_and_the_first_goes_on(
    tmp_path: Path, shared_broker: EmbeddedBroker, connect: Connect, cluster: str, unique: str
) -> None:
    device = f"pi-{unique}"
    command = [sys.executable, "-m", "shardline", "stage", "--device", device, "--cluster", cluster]
    command += ["--shards", str(tmp_path), "--broker", str(shared_broker.address)]
    observer = Listener(connect, f"observer-{unique}", topics.status_filter(cluster))
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: observer.heard, "the first one is there", timeout_s=30)
        time.sleep(6.0)  # more than what counts as the same age
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 3
        assert "NameTakenError" in second.stderr
        assert device in second.stderr
        assert first.poll() is None
        eventually(
            lambda: (
                [s.state for s in observer.payloads("status", parse_status)][-1:]
                == [DeviceState.ONLINE]
            ),
            "the first one says that it is there",
        )
    finally:
        first.terminate()
        first.wait(timeout=10)
        observer.close()
