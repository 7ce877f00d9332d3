"""A plan over several Mosquittos: bytes go where they should, and nothing is lost on the way."""

import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import broker.split
import stage.agent
from broker.connection import connector
from broker.embedded import EmbeddedBroker
from broker.memory import MemoryBroker
from broker.transport import BrokerAddress
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.errors import BrokerUnreachableError, ExitCode, PlanError, ShardError
from contract.plan import EdgeBroker, Plan, place
from contract.status import Event, EventKind, ShardState, parse_status
from planner.publish import Publisher
from shardline.__main__ import main
from stage.agent import StageAgent, StageSettings
from tests.conftest import eventually
from tests.pipeline.fakes import Run, make_batches, place_on, publish_plan
from tests.stage.harness import Listener
from tests.tiny import make_tiny_plan


class Site:
    """A main broker and two others, three real stages, a client, and somebody who watches."""

    def __init__(self, folder: Path, brokers: dict[str, EmbeddedBroker]) -> None:
        unique = secrets.token_hex(4)
        self.folder, self.brokers, self.cluster = folder, brokers, f"test-{unique}"
        self.connect = connector(brokers["main"].address)
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
                connector(each.address), f"observer-{secrets.token_hex(4)}", *filters
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
                3 if topic.stage_index is None else topic.stage_index for topic in parsed
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


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, EmbeddedBroker]]:
    with EmbeddedBroker() as one, EmbeddedBroker() as two, EmbeddedBroker() as three:
        yield {"main": one, "a": two, "b": three}


@pytest.fixture
def site(tmp_path: Path, shared: dict[str, EmbeddedBroker]) -> Iterator[Site]:
    site = Site(tmp_path, shared)
    yield site
    site.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants to wait five seconds for a broker that a test knows to be away."""
    monkeypatch.setattr(broker.split, "LINK_TIMEOUT_S", 0.7)
    monkeypatch.setattr(stage.agent, "EDGE_RETRY_S", 0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Case(NamedTuple):
    edges: dict[str, str | None]
    main: tuple[int, ...]
    a: tuple[int, ...] = ()
    b: tuple[int, ...] = ()


CASES = {
    "none": Case({}, (0, 1, 2, 3)),
    "one in the middle": Case({"e1": "a"}, (0, 2, 3), (1,)),
    "inputs and results": Case({"e0": "a", "e3": "b"}, (1, 2), (0,), (3,)),
    "neighbours on one": Case({"e1": "a", "e2": "a"}, (0, 3), (1, 2)),
    "all": Case({"e0": "a", "e1": "b", "e2": "a", "e3": "b"}, (), (0, 2), (1, 3)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_edge_is_carried_by_its_broker_alone(site: Site, case: Case) -> None:
    site.start()
    site.observe()
    site.publish(site.split(**case.edges))
    with site.client() as pipeline:
        pipeline.open()
        Run(pipeline, make_batches(40)).go().keeps_the_promise()
        assert pipeline.rejected == 0
    expected = {"main": case.main, "a": case.a, "b": case.b}
    eventually(lambda: sum(c.total() for c in site.carried().values()) >= 160, "all is observed")
    carried = site.carried()
    assert {name: tuple(sorted(count)) for name, count in carried.items()} == expected
    for count in carried.values():
        assert all(40 <= messages <= 44 for messages in count.values()), carried


@pytest.mark.parametrize("edge", [0, 1, 3])
def test_an_edge_s_broker_killed_and_restarted_loses_nothing(
    tmp_path: Path, shared: dict[str, EmbeddedBroker], edge: int
) -> None:
    """It comes back with nothing: no session and no message. The client is at every broker."""
    with EmbeddedBroker() as own:
        site = Site(tmp_path, {**shared, "a": own})
        try:
            site.start()
            site.publish(site.split(**{f"e{edge}": "a"}))

            def kill_and_restart(ended: int) -> None:
                if ended == 20:
                    own.kill()
                    own.start()

            with site.client() as pipeline:
                pipeline.open()
                run = Run(pipeline, make_batches(60)).go(kill_and_restart)
                run.keeps_the_promise()
                assert pipeline._connection.reconnects == 1
        finally:
            site.close()


def test_the_client_names_the_edge_whose_broker_is_away(
    tmp_path: Path, shared: dict[str, EmbeddedBroker]
) -> None:
    """And sends nothing meanwhile: it would only fill the queues of the stages before."""
    with EmbeddedBroker() as own:
        site = Site(tmp_path, {**shared, "a": own})
        try:
            site.start()
            site.publish(site.split(e1="a"))
            with site.client() as pipeline:
                pipeline.open()
                own.kill()
                eventually(pipeline.waiting_for, "the client has noticed")
                assert pipeline.waiting_for() == "the broker of edge 1 is away"
                assert not pipeline._can_send()
                own.start()
                eventually(pipeline._can_send, "it goes on")
                Run(pipeline, make_batches(20)).go().keeps_the_promise()
        finally:
            site.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({"e0": "a", "e1": "a", "e3": "b"}, {}, id="back to the main broker"),
        pytest.param({}, {"e0": "a", "e1": "a", "e3": "b"}, id="to brokers of their own"),
        pytest.param({"e1": "a", "e2": "b"}, {"e1": "b", "e2": "a"}, id="from one to another"),
    ],
)
def test_the_same_plan_published_again_moves_its_edges_in_the_middle(
    site: Site, before: dict[str, str | None], after: dict[str, str | None]
) -> None:
    site.start()
    site.publish(site.split(**before))
    moved = site.split(**after)
    with site.client() as pipeline:
        pipeline.open()

        def move(ended: int) -> None:
            if ended == 20:
                site.publish(moved)

        Run(pipeline, make_batches(60)).go(move).keeps_the_promise()
        assert pipeline.plan.edge_brokers == moved.edge_brokers
        # All agents have moved when a batch went through after the client did.
        site.observe()
        [*batches] = make_batches(20, seed=2)
        ends = list(pipeline.run(batches))
        assert len(ends) == 20
    home = {int(edge[1:]): name for edge, name in after.items()}
    eventually(lambda: sum(c.total() for c in site.carried().values()) >= 80, "all is observed")
    for name, count in site.carried().items():
        assert {edge: home.get(edge, "main") for edge in count} == dict.fromkeys(count, name)


def test_links_that_no_plan_needs_are_closed(site: Site) -> None:
    """A device keeps no connection to the brokers of an old plan, and none that it never needs."""
    with EmbeddedBroker() as own:
        site.brokers = {**site.brokers, "own": own}
        site.start()
        site.publish(site.split(e1="own"))
        with site.client() as pipeline:
            pipeline.open()
            eventually(lambda: connections_to(own.port) == 3, "stages 0 and 1, and the client")
            site.publish(site.split())
            Run(pipeline, make_batches(5)).go().keeps_the_promise()
            eventually(lambda: connections_to(own.port) == 0, "nobody is left")


def connections_to(port: int) -> int:
    """Established connections of this process's threads to a loopback port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(f[2].endswith(f":{port:04X}") and f[3] == "01" for f in fields)


def test_a_broker_that_is_not_there_fails_the_shards_beside_it_until_it_is(
    site: Site, quick: None
) -> None:
    """After a power cut the brokers of edges may start last: nobody has to publish again."""
    port = free_port()
    events = site.listen(topics.event_filter(site.cluster))
    statuses = site.listen(topics.status_filter(site.cluster))
    site.start()
    plan = site.split(e1=f"127.0.0.1:{port}")
    told = rf"edge 1 has a broker of its own, 127\.0\.0\.1:{port}: cannot reach"
    with Publisher(site.connect, site.cluster, f"planner-{site.name}") as publisher:
        publisher.publish(plan)
        with pytest.raises(ShardError, match=told):
            publisher.wait_until_ready(plan, 15, lambda _what, _share: None)

        def shards() -> dict[str, ShardState]:
            return {s.device: s.shard for s in statuses.payloads("status", parse_status)}

        ready, failed = ShardState.READY, ShardState.FAILED
        expected = dict(zip(site.devices, (failed, failed, ready), strict=True))
        eventually(lambda: shards() == expected, "the last stage needs no such broker")
        eventually(
            lambda: any(
                e.kind is EventKind.SHARD_FAILED and f":{port}" in e.detail
                for e in events.payloads("event", Event.model_validate_json)
            ),
            "an event tells it",
        )
        with site.client() as pipeline, pytest.raises(BrokerUnreachableError, match=told):
            pipeline.open()
        with EmbeddedBroker(port):
            eventually(lambda: set(shards().values()) == {ready}, "they try again by themselves")
            with site.client() as pipeline:
                pipeline.open()
                Run(pipeline, make_batches(10)).go().keeps_the_promise()
            site.publish(site.split())
            eventually(lambda: connections_to(port) == 0, "they have left it")


def test_a_running_stage_whose_new_broker_is_not_there_says_so(site: Site, quick: None) -> None:
    """It could go on by the old one, while its neighbours wait for it at the new one."""
    statuses = site.listen(topics.status_filter(site.cluster))

    def shards() -> list[ShardState]:
        last = {s.device: s.shard for s in statuses.payloads("status", parse_status)}
        return [last[device] for device in site.devices if device in last]

    ready, failed = ShardState.READY, ShardState.FAILED
    site.start()
    site.publish(site.split(e1="a"))
    eventually(lambda: shards() == [ready] * 3, "it runs")
    site.publish(site.split(e2=f"127.0.0.1:{free_port()}"))
    eventually(lambda: shards() == [ready, failed, failed], "the two beside the edge fail")
    site.publish(site.split(e1="a"))
    eventually(lambda: shards() == [ready] * 3, "it runs again")
    with site.client() as pipeline:
        pipeline.open()
        Run(pipeline, make_batches(10)).go().keeps_the_promise()


def test_another_plan_is_obeyed_while_one_cannot_be_served(site: Site, quick: None) -> None:
    site.start()
    site.publish(site.split(e1=f"127.0.0.1:{free_port()}"))
    statuses = site.listen(topics.status_filter(site.cluster))
    eventually(
        lambda: any(
            s.shard is ShardState.FAILED for s in statuses.payloads("status", parse_status)
        ),
        "it is tried",
    )
    site.publish(site.split(e1="a"))
    with site.client() as pipeline:
        deadline = time.monotonic() + 15
        while pipeline_failed(pipeline) and time.monotonic() < deadline:
            time.sleep(0.1)
        Run(pipeline, make_batches(10)).go().keeps_the_promise()


def pipeline_failed(pipeline: Pipeline) -> bool:
    try:
        pipeline.open()
    except ShardError:
        return True
    return False


def test_without_a_way_to_other_brokers_such_a_plan_is_refused(site: Site) -> None:
    site.start(elsewhere=False)
    plan = site.split(e1="a")
    with Publisher(site.connect, site.cluster, f"planner-{site.name}") as publisher:
        publisher.publish(plan)
        with pytest.raises(ShardError, match="this process can reach none but its own broker"):
            publisher.wait_until_ready(plan, 15, lambda _what, _share: None)
    alone = Pipeline(ClientSettings(site.name, site.cluster), site.connect)
    with alone, pytest.raises(PlanError, match="edge 1 has a broker of its own"):
        alone.open()


def test_the_broker_in_memory_refuses_such_a_plan_too(tmp_path: Path, cluster: str) -> None:
    memory = MemoryBroker()
    plan = make_tiny_plan(tmp_path, cluster=cluster)
    groups = [[r.device for r in spot.replicas] for spot in plan.placement]
    assert place_on(plan, groups, cluster) == plan
    split = place(
        plan,
        [spot.replicas for spot in plan.placement],
        cluster,
        [EdgeBroker(edge=0, address="hub")],
    )
    publish_plan(memory.connect, split, cluster)
    with (
        Pipeline(ClientSettings("client", cluster), memory.connect) as pipeline,
        pytest.raises(PlanError, match="edge 0 has a broker of its own, hub:1883"),
    ):
        pipeline.open()


# The command

Shardline = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shardline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shardline:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shardline", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


def reach(site: Site) -> Sequence[object]:
    return ("--broker", site.connect.address, "--cluster", site.cluster)


def test_the_command_publishes_brokers_of_edges_and_infers_over_them(
    site: Site, shardline: Shardline, tmp_path: Path
) -> None:
    site.start()
    folder = tmp_path / "tiny"
    a, b = site.brokers["a"].address, site.brokers["b"].address
    edges = ("--edge-broker", f"3={b}", "--edge-broker", f"1={a}")
    code, out, err = shardline("publish", folder, *reach(site), *edges)
    assert code == 0, err
    assert (
        f"brokers of their own: edge 1 (inputs of stage 1) {a}; edge 3 (results) {b}; "
        "everything else goes by the main one" in out
    )
    site.observe()
    code, _, err = shardline("infer", "dummy:40", *reach(site), "--username", site.name)
    assert code == 0, err
    carried = {name: sorted(count) for name, count in site.carried().items()}
    assert carried == {"main": [0, 2], "a": [1], "b": [3]}
    code, out, err = shardline("publish", folder, *reach(site))
    assert code == 0, err
    assert "brokers of their own" not in out


def test_the_command_tries_the_brokers_before_it_publishes(
    site: Site, shardline: Shardline, tmp_path: Path, quick: None
) -> None:
    site.start()
    plans = site.listen(topics.plan_topic(site.cluster))
    port = free_port()
    edges = ("--edge-broker", f"1=127.0.0.1:{port}")
    code, _, err = shardline("publish", tmp_path / "tiny", *reach(site), *edges)
    assert code == ExitCode.BROKER
    assert f"edge 1 has a broker of its own, 127.0.0.1:{port}: cannot reach" in err
    edges = ("--edge-broker", f"1={site.connect.address}")
    code, _, err = shardline("publish", tmp_path / "tiny", *reach(site), *edges)
    assert code == ExitCode.SETTINGS
    assert "that is --broker" in err
    assert plans.heard == []


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["pi-8:1883"], "expected EDGE=HOST:PORT"),
        (["=pi-8:1883"], "expected EDGE=HOST:PORT"),
        (["-1=pi-8"], "expected EDGE=HOST:PORT"),
        (["²=pi-8"], "expected EDGE=HOST:PORT"),
        (["4=pi-8:1883"], "expected an edge of 0 (the inputs of stage 0) to 3 (the results)"),
        (["9" * 5000 + "=pi-8"], "expected an edge of 0"),
        (["1=pi-8", "1=pi-9"], "edge 1 has a broker already"),
        (["1="], "expected host or host:port"),
        (["1=pi-8:0"], "expected host or host:port"),
        (["1=pi 8"], "expected host or host:port"),
    ],
)
def test_an_option_that_is_none_is_refused_with_what_was_expected(
    tmp_path: Path, shardline: Shardline, texts: list[str], expected: str
) -> None:
    make_tiny_plan(tmp_path, devices=())
    options = [part for text in texts for part in ("--edge-broker", text)]
    code, _, err = shardline("publish", tmp_path / "tiny", *options)
    assert code == ExitCode.SETTINGS
    assert expected in err.replace("\n", " ")
    assert "Traceback" not in err


def test_show_prints_the_brokers_of_edges(site: Site, shardline: Shardline, tmp_path: Path) -> None:
    code, out, _ = shardline("show", tmp_path / "tiny")
    assert code == 0
    assert "brokers of their own" not in out
    (tmp_path / "tiny" / "plan.json").write_text(site.split(e3="hub:1999", e0="hub").to_json())
    code, out, _ = shardline("show", tmp_path / "tiny")
    assert "edge 0 (inputs of stage 0) hub; edge 3 (results) hub:1999;" in out


def test_an_address_of_the_main_broker_keeps_the_edge_there(site: Site) -> None:
    """A device on the broker's own machine may know it by the name that the plan uses."""
    site.start()
    site.observe()
    site.publish(site.split(e1=str(site.connect.address)))
    with site.client() as pipeline:
        pipeline.open()
        Run(pipeline, make_batches(10)).go().keeps_the_promise()
    assert site.connect.address == BrokerAddress("127.0.0.1", site.brokers["main"].port)
    assert set(site.carried()["main"]) == {0, 1, 2, 3}
