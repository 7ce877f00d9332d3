"""Which brokers a plan may name for its edges, and what placing it does to them."""

import json
from pathlib import Path
from typing import Any

import pytest

from contract.errors import PlanError
from contract.plan import EdgeBroker, Plan, Replica, parse_plan, place
from tests.tiny import make_tiny_plan

DEVICES = [[Replica(device=name)] for name in ("a", "b", "c")]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_tiny_plan(tmp_path_factory.mktemp("plan"))


def with_edges(plan: Plan, edges: list[Any]) -> str:
    return json.dumps(json.loads(plan.to_json()) | {"edge_brokers": edges})


@pytest.mark.parametrize(
    "address",
    ["pi-8", "pi-8:1883", "192.168.1.9:1", "pi_8.home.arpa:65535", "[::1]", "[fe80::1]:1884"],
)
def test_an_edge_may_have_a_broker_of_its_own(plan: Plan, address: str) -> None:
    document = with_edges(plan, [{"edge": 3, "address": address}, {"edge": 0, "address": "hub"}])
    parsed = parse_plan(document, "here")
    assert parsed.edge_addresses() == {3: address, 0: "hub"}
    assert parsed.edge_addresses((0, 1)) == {0: "hub"}
    assert parsed.edge_addresses(()) == {}
    assert parse_plan(parsed.to_json(), "here") == parsed


def test_a_plan_that_does_not_speak_of_edges_has_none(plan: Plan) -> None:
    document = json.loads(plan.to_json())
    del document["edge_brokers"]
    assert parse_plan(json.dumps(document), "here") == plan
    assert plan.edge_brokers == ()


@pytest.mark.parametrize(
    "address",
    [
        *("", ":1883", "pi-8:", "pi-8:0", "pi-8:65536", "pi-8:+1", "pi-8:1883:1", "pi-8:١"),
        *("pi 8", "pi-8\n", "pi-8:1883\n", "-pi", "::1", "[::1", "user@pi-8", "mqtt://pi-8", "a/b"),
        pytest.param("a" * 263, id="long"),
        pytest.param(7, id="a number"),
        pytest.param(None, id="null"),
    ],
)
def test_an_address_that_is_none_is_refused(plan: Plan, address: object) -> None:
    with pytest.raises(PlanError, match="edge_brokers"):
        parse_plan(with_edges(plan, [{"edge": 1, "address": address}]), "here")


@pytest.mark.parametrize(
    "edges",
    [
        pytest.param([4], id="an edge too many"),
        pytest.param([-1], id="before the first"),
        pytest.param([1, 2, 1], id="one twice"),
        pytest.param(["1"], id="a text"),
        pytest.param([True], id="a boolean"),
    ],
)
def test_an_edge_that_is_none_is_refused(plan: Plan, edges: list[Any]) -> None:
    with pytest.raises(PlanError, match="edge"):
        parse_plan(with_edges(plan, [{"edge": e, "address": "hub"} for e in edges]), "here")


def test_brokers_of_edges_belong_to_the_placement(plan: Plan) -> None:
    brokers = [EdgeBroker(edge=1, address="hub"), EdgeBroker(edge=3, address="hub")]
    split = place(plan, DEVICES, "home", brokers)
    assert split.edge_brokers == tuple(brokers)
    assert split.plan_id == plan.plan_id
    assert split != place(plan, DEVICES, "home")
    assert place(split, DEVICES, "home").edge_brokers == ()


def test_placing_refuses_an_edge_that_the_plan_does_not_have(plan: Plan) -> None:
    with pytest.raises(PlanError, match=r"tiny.*0 to 3"):
        place(plan, DEVICES, "home", [EdgeBroker(edge=4, address="hub")])


def test_an_edge_broker_from_a_file_is_kept_as_it_stands(tmp_path: Path, plan: Plan) -> None:
    text = with_edges(plan, [{"edge": 2, "address": "hub:1999"}])
    assert json.loads(parse_plan(text, "here").to_json())["edge_brokers"] == [
        {"edge": 2, "address": "hub:1999"}
    ]
