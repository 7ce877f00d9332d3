"""One connection over several brokers: what goes where, and what happens when links change."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import broker.split
from broker.connection import Connector
from broker.memory import MemoryBroker, MemoryConnection
from broker.split import SplitConnection
from broker.transport import (
    BrokerAddress,
    Callbacks,
    Connect,
    Connection,
    ConnectionSettings,
    Delivery,
    PublishOutcome,
    Will,
)
from contract import topics
from contract.errors import (
    BrokerUnreachableError,
    NotAuthorisedError,
    PlanError,
    SettingsError,
    ShardlineError,
)
from tests.conftest import eventually
from tests.stage.harness import HandConnection, Listener

PLAN_ID = "0123456789abcdef"
INPUTS = [topics.input_topic("home", f"pi-{e}", PLAN_ID, e, "sender") for e in range(3)]
RESULT = topics.result_topic("home", "client", "pi-2")
OTHERS = [
    topics.plan_topic("home"),
    topics.status_topic("home", "pi-1"),
    topics.command_topic("home", "pi-1", "planner"),
    topics.answer_topic("home", "planner", "pi-1"),
    topics.blob_topic("home", "pi-1", "planner"),
    topics.nack_topic("home", "client", "pi-1"),
    topics.event_topic("home", "pi-1"),
    topics.metrics_topic("home", "pi-1"),
    "somebody/else",
]
MINE = topics.input_filter("home", "pi-1")


class Fleet:
    """A main broker, two others by address, and one connection split over them."""

    def __init__(self) -> None:
        self.brokers = {name: MemoryBroker() for name in ("main", "a:1883", "b:1883")}
        self.opened: list[tuple[str, MemoryConnection]] = []
        self.settings: list[ConnectionSettings] = []
        self.heard: list[Delivery] = []
        self.connected: list[bool] = []
        self.lost: list[str] = []
        self.failing: dict[str, ShardlineError] = {}
        self.observers = {
            name: Listener(each.connect, "observer", "#") for name, each in self.brokers.items()
        }
        self.split = self.open()

    def open(self, **settings: Any) -> SplitConnection:
        return SplitConnection(
            self.connect_to("main"),
            ConnectionSettings(name="pi-1", **settings),
            Callbacks(self.heard.append, self.connected.append, self.lost.append),
            self.elsewhere,
            (MINE,),
        )

    def connect_to(self, name: str) -> Connect:
        def connect(settings: ConnectionSettings, callbacks: Callbacks) -> Connection:
            self.settings.append(settings)
            if name in self.failing:
                raise self.failing[name]
            connection = self.brokers[name].connect(settings, callbacks)
            assert isinstance(connection, MemoryConnection)
            self.opened.append((name, connection))
            return connection

        return connect

    def elsewhere(self, address: str) -> Connect | None:
        return None if address == "hub:1883" else self.connect_to(address)

    def links(self, name: str) -> list[MemoryConnection]:
        return [connection for opened, connection in self.opened if opened == name]

    def sends(self, topic: str) -> list[str]:
        """On which brokers a message on this topic is heard."""
        for observer in self.observers.values():
            observer.heard.clear()
        self.split.publish(topic, b"payload").result(timeout=5)
        eventually(lambda: any(o.heard for o in self.observers.values()), "it is heard")
        return [n for n, o in self.observers.items() for d in o.heard if d.topic == topic]

    def close(self) -> None:
        self.split.close()
        for observer in self.observers.values():
            observer.close()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


def test_without_edges_everything_goes_by_the_main_broker(fleet: Fleet) -> None:
    for topic in (*INPUTS, RESULT, *OTHERS):
        assert fleet.sends(topic) == ["main"]
    assert fleet.split.use({}, 3) is False
    assert [name for name, _ in fleet.opened] == ["main"]


def test_inputs_and_results_go_by_the_broker_of_their_edge(fleet: Fleet) -> None:
    assert fleet.split.use({1: "a", 3: "b:1883"}, 3)
    assert [fleet.sends(topic) for topic in INPUTS] == [["main"], ["a:1883"], ["main"]]
    assert fleet.sends(RESULT) == ["b:1883"]
    for topic in OTHERS:
        assert fleet.sends(topic) == ["main"]


def test_results_go_by_the_edge_after_the_last_stage_whatever_the_plan_s_length(
    fleet: Fleet,
) -> None:
    fleet.split.use({1: "a", 2: "b"}, 2)
    assert fleet.sends(RESULT) == ["b:1883"]
    fleet.split.use({1: "a", 2: "b"}, 1)
    assert fleet.sends(RESULT) == ["a:1883"]
    fleet.split.use({1: "a", 2: "b"}, 3)
    assert fleet.sends(RESULT) == ["main"]


def test_edges_of_one_broker_share_a_link(fleet: Fleet) -> None:
    """Two of one name would throw each other out."""
    fleet.split.use({0: "a", 1: "a:1883", 3: "a"}, 3)
    assert len(fleet.links("a:1883")) == 1
    assert fleet.sends(INPUTS[0]) == fleet.sends(INPUTS[1]) == fleet.sends(RESULT) == ["a:1883"]


def test_an_edge_that_names_the_main_broker_has_no_link(fleet: Fleet) -> None:
    assert fleet.split.use({1: "hub"}, 3) is False
    assert fleet.sends(INPUTS[1]) == ["main"]
    assert len(fleet.opened) == 1


def test_a_link_is_opened_as_the_main_connection_but_without_the_will() -> None:
    fleet = Fleet()
    fleet.split.close()
    fleet.settings.clear()
    will = Will("t", b"dead")
    fleet.split = fleet.open(
        will=will, receive_maximum=3, session_expiry_s=77, connect_timeout_s=None
    )
    fleet.split.use({1: "a"}, 3)
    main, link = fleet.settings
    assert main.will == will
    assert link == ConnectionSettings(
        name="pi-1",
        receive_maximum=3,
        session_expiry_s=77,
        will=None,
        connect_timeout_s=broker.split.LINK_TIMEOUT_S,
    )
    fleet.close()


def test_a_link_hears_its_filters_and_the_main_broker_what_was_subscribed(fleet: Fleet) -> None:
    plan = topics.plan_topic("home")
    fleet.split.subscribe(plan)
    fleet.split.subscribe(MINE)
    fleet.split.use({1: "a"}, 3)
    for name in ("main", "a:1883"):
        for topic in (INPUTS[1], plan):
            fleet.observers[name].connection.publish(topic, name.encode()).result(timeout=5)
    eventually(lambda: len(fleet.heard) >= 3, "all are heard")
    heard = {(d.topic, d.payload) for d in fleet.heard}
    assert heard == {(INPUTS[1], b"main"), (INPUTS[1], b"a:1883"), (plan, b"main")}


def test_the_same_edges_again_change_nothing(fleet: Fleet) -> None:
    assert fleet.split.use({1: "a", 2: "b"}, 3) is True
    assert fleet.split.use({2: "b:1883", 1: "a:1883"}, 3) is False
    assert len(fleet.opened) == 3
    assert fleet.split.use({1: "b", 2: "a"}, 3) is True  # only who carries what
    assert len(fleet.opened) == 3
    assert fleet.sends(INPUTS[1]) == ["b:1883"]


def test_a_link_that_no_edge_needs_is_closed_and_forgotten(fleet: Fleet) -> None:
    fleet.split.use({1: "a", 2: "b"}, 3)
    assert fleet.split.use({2: "b"}, 3)
    [gone], [kept] = fleet.links("a:1883"), fleet.links("b:1883")
    assert (gone.is_connected, kept.is_connected) == (False, True)
    assert fleet.sends(INPUTS[1]) == ["main"]
    fleet.observers["a:1883"].close()  # so that nobody else is subscribed there
    again = fleet.brokers["a:1883"].connect(ConnectionSettings("other"), Callbacks(lambda _d: None))
    assert again.publish(INPUTS[1], b"").result(5) is PublishOutcome.NO_SUBSCRIBER
    again.close()


def over_hand(hand: HandConnection) -> SplitConnection:
    """Edge 1 goes by a broker whose answers are in the test's hands."""
    split = SplitConnection(
        MemoryBroker().connect,
        ConnectionSettings(name="pi-0"),
        Callbacks(lambda _delivery: None),
        lambda _address: lambda _settings, _callbacks: hand,
        (),
    )
    split.use({1: "slow"}, 3)
    return split


def test_what_a_given_up_link_still_owes_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage acknowledges its input when its output is settled: it must not wait for ever."""
    monkeypatch.setattr(broker.split, "DRAIN_S", 0.05)
    hand = HandConnection()
    split = over_hand(hand)
    settled = split.publish(INPUTS[1], b"1")
    hand.published[0].future.set_result(PublishOutcome.ACCEPTED)
    owed = split.publish(INPUTS[1], b"2")
    told: list[Future[PublishOutcome]] = []
    owed.add_done_callback(told.append)
    split.use({}, 3)
    assert settled.result(0) is PublishOutcome.ACCEPTED
    assert owed.result(0) is PublishOutcome.NO_SUBSCRIBER
    assert told == [owed]
    split.close()


def test_a_given_up_link_may_first_hand_over_what_it_has() -> None:
    hand = HandConnection()
    split = over_hand(hand)
    future = split.publish(INPUTS[1], b"late")
    late = threading.Timer(0.2, future.set_result, (PublishOutcome.ACCEPTED,))
    late.start()
    split.use({}, 3)
    assert future.result(0) is PublishOutcome.ACCEPTED
    late.join()
    split.close()


def test_a_link_that_is_down_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.split, "DRAIN_S", 30.0)
    hand = HandConnection()
    split = over_hand(hand)
    future = split.publish(INPUTS[1], b"kept for the next connection")
    hand.is_connected = False
    split.use({}, 3)
    assert future.result(0) is PublishOutcome.NO_SUBSCRIBER
    split.close()


@pytest.mark.parametrize("kind", [BrokerUnreachableError, NotAuthorisedError])
def test_a_link_that_cannot_be_opened_is_named_and_changes_nothing(
    fleet: Fleet, kind: type[ShardlineError]
) -> None:
    fleet.split.use({2: "a"}, 3)
    fleet.failing["b:1883"] = kind("it is not there")
    fleet.brokers["c:1883"] = MemoryBroker()
    with pytest.raises(kind, match=r"edge 1, 3 has a broker of its own, b:1883: it is not there"):
        fleet.split.use({0: "c", 1: "b", 3: "b"}, 3)
    assert [fleet.sends(topic) for topic in INPUTS] == [["main"], ["main"], ["a:1883"]]
    assert fleet.links("a:1883")[0].is_connected
    [half_way] = fleet.links("c:1883")
    assert not half_way.is_connected
    del fleet.failing["b:1883"]
    assert fleet.split.use({1: "b"}, 3)
    assert fleet.sends(INPUTS[1]) == ["b:1883"]


def test_without_a_way_to_others_an_edge_broker_is_refused(fleet: Fleet) -> None:
    alone = SplitConnection(
        fleet.connect_to("main"),
        ConnectionSettings(name="alone"),
        Callbacks(fleet.heard.append),
        None,
        (MINE,),
    )
    assert alone.use({}, 3) is False
    with pytest.raises(PlanError, match=r"edge 1 has a broker of its own, a:1883.*--edge-broker"):
        alone.use({1: "a"}, 3)
    alone.close()


def test_an_address_that_is_none_is_refused(fleet: Fleet) -> None:
    with pytest.raises(SettingsError, match="expected host or host:port"):
        fleet.split.use({1: "a:b:c"}, 3)


def test_it_is_connected_while_every_link_stands(fleet: Fleet) -> None:
    fleet.split.use({1: "a", 2: "b", 3: "b"}, 3)
    assert fleet.split.is_connected
    assert fleet.split.away() == ""
    fleet.links("b:1883")[0].drop()
    assert not fleet.split.is_connected
    assert fleet.split.away() == "the broker of edge 2, 3 is away"
    eventually(lambda: fleet.lost == ["dropped"], "the owner is told")
    fleet.links("main")[0].drop()
    assert fleet.split.away() == "the broker is away"


def test_reconnects_are_those_of_all_links_and_never_fewer(fleet: Fleet) -> None:
    fleet.split.use({1: "a", 2: "b"}, 3)
    for number, name in enumerate(("main", "a:1883", "b:1883")):
        fleet.links(name)[0].reconnects = 10**number
    assert fleet.split.reconnects == 111
    fleet.split.use({1: "a"}, 3)
    assert fleet.split.reconnects == 111


def test_a_broker_that_forgot_us_is_told_but_not_that_a_link_is_new() -> None:
    told: list[bool] = []
    callbacks: list[Callbacks] = []

    def connect(_settings: ConnectionSettings, heard: Callbacks) -> Connection:
        callbacks.append(heard)
        heard.on_connected(False)
        return HandConnection()

    split = SplitConnection(
        connect,
        ConnectionSettings(name="client"),
        Callbacks(lambda _d: None, told.append),
        lambda _address: connect,
        (),
    )
    assert told == [False]
    split.use({0: "a"}, 3)
    assert told == [False]
    for session_present in (True, False):
        callbacks[1].on_connected(session_present)
    assert told == [False, True, False]


@pytest.mark.parametrize("forget", [True, False])
def test_closing_closes_every_link(forget: bool) -> None:
    fleet = Fleet()
    fleet.split.use({1: "a", 2: "b"}, 3)
    fleet.split.close(forget_session=forget)
    assert not any(connection.is_connected for _, connection in fleet.opened)
    kept = [n for n, each in fleet.brokers.items() if "pi-1" in each._sessions]
    assert kept == ([] if forget else ["main", "a:1883", "b:1883"])
    for observer in fleet.observers.values():
        observer.close()


def test_another_broker_is_reached_as_the_same_user() -> None:
    main = Connector(BrokerAddress("hub", 1999, "pi-1", "secret"))
    there = main.elsewhere("[::1]:1884")
    assert there == Connector(BrokerAddress("::1", 1884, "pi-1", "secret"))
    assert main.elsewhere("hub") == Connector(BrokerAddress("hub", 1883, "pi-1", "secret"))
    assert main.elsewhere("HUB:1999") is None
    assert "secret" not in repr(main)
