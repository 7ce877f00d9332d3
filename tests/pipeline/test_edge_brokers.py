"""A plan over several Mosquittos: bytes go where they should, and nothing is lost on the way."""

import time
from pathlib import Path
from typing import NamedTuple

import pytest

import broker.split
import stage.inbox
import stage.plan_follower
from broker.embedded import EmbeddedBroker
from broker.memory import MemoryBroker
from broker.split import SplitConnection
from broker.transport import BrokerAddress
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract import topics
from contract.errors import BrokerUnreachableError, PlanError, ShardError
from contract.plan import EdgeBroker, place
from contract.status import Event, EventKind, ShardState, parse_status
from planner.publish import Publisher
from tests.conftest import eventually
from tests.pipeline.fakes import Run, make_batches, place_on, publish_plan
from tests.pipeline.split_site import Site, free_port
from tests.tiny import make_tiny_plan


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
                assert not pipeline._sender.can_send()
                own.start()
                eventually(pipeline._sender.can_send, "it goes on")
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


def test_between_two_tries_a_device_pauses(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it looks up from its queue meanwhile: each try holds everything else up."""
    pause_s, ends = 0.5, list[float]()
    pauses = list[float]()

    def use(connection: SplitConnection, addresses: dict[int, str], num_stages: int) -> bool:
        if addresses and ends:
            pauses.append(time.monotonic() - ends[-1])
        try:
            return original(connection, addresses, num_stages)
        finally:
            if addresses:
                ends.append(time.monotonic())

    original = SplitConnection.use
    monkeypatch.setattr(SplitConnection, "use", use)
    monkeypatch.setattr(broker.split, "LINK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(stage.plan_follower, "EDGE_RETRY_S", pause_s)
    monkeypatch.setattr(stage.inbox, "LONGEST_WAIT_S", 0.02)
    site.devices = site.devices[:1]  # the others would try as well
    site.start()
    site.publish(site.split(e1=f"127.0.0.1:{free_port()}"))
    eventually(lambda: len(pauses) >= 3, "it tries again and again")
    assert min(pauses) >= pause_s


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
    except (ShardError, BrokerUnreachableError):
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
