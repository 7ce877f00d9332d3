"""What Home Assistant is told: messages of its discovery, whose templates read what we publish."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import pytest

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from client.home_assistant.announcer import Announcer, Told
from client.home_assistant.discovery import device_discovery, pipeline_discovery
from client.watch.view import DeviceView
from contract import topics
from contract.errors import SettingsError
from contract.frozen import FrozenModel
from contract.status import Capabilities, DeviceState
from tests.conftest import eventually
from tests.records.told import Teller, device_metrics, pipeline_metrics, status

CLUSTER = "home"
DEVICE = json.loads(device_discovery(CLUSTER, DeviceView("pi-0", status("pi-0"), (), None)))
PIPELINE = json.loads(pipeline_discovery(CLUSTER))
PARTS = [
    *((f"device {key}", part) for key, part in DEVICE["components"].items()),
    *((f"pipeline {key}", part) for key, part in PIPELINE["components"].items()),
]
DEVICE_CLASSES = {
    "sensor": {
        "temperature": {"°C"},
        "data_size": {"B"},
        "duration": {"ms"},
        None: {"images/s", "tokens/s", "%", "batches"},
    },
    "binary_sensor": {"problem": {None}, "connectivity": {None}},
}
"""Of Home Assistant, with the units that go with each."""


def shown(template: str, message: FrozenModel) -> str:
    """What Home Assistant's template engine makes of a message."""
    value_json = json.loads(message.model_dump_json())
    return jinja2.Environment(autoescape=False).from_string(template).render(value_json=value_json)


@pytest.mark.parametrize("document", [DEVICE, PIPELINE], ids=["device", "pipeline"])
def test_a_message_has_what_device_discovery_requires(document: dict[str, Any]) -> None:
    assert document["device"]["identifiers"]
    assert document["device"]["name"]
    assert document["origin"]["name"] == "shardline"
    assert document["components"]


@pytest.mark.parametrize("part", [part for _, part in PARTS], ids=[name for name, _ in PARTS])
def test_a_component_is_one_that_home_assistant_knows(part: dict[str, Any]) -> None:
    units = DEVICE_CLASSES[part["platform"]][part.get("device_class")]
    assert part.get("unit_of_measurement") in units
    assert part["unique_id"]
    assert part["name"]
    assert part["state_topic"].startswith(f"{topics.ROOT}/{CLUSTER}/")
    jinja2.Environment(autoescape=False).from_string(part["value_template"])


def test_names_are_unique() -> None:
    ids = [part["unique_id"] for _, part in PARTS]
    assert len(set(ids)) == len(ids)
    other = json.loads(device_discovery("home_pi", DeviceView("0", status("0"), (), None)))
    assert not set(ids) & {part["unique_id"] for part in other["components"].values()}


def test_a_device_shows_what_it_publishes() -> None:
    parts, metrics = DEVICE["components"], device_metrics(utilisation=0.417)
    assert {part["state_topic"] for key, part in parts.items() if key != "online"} == {
        topics.metrics_topic(CLUSTER, "pi-0")
    }
    assert {
        key: shown(parts[key]["value_template"], metrics) for key in parts if key != "online"
    } == {
        "temperature": "55.5",
        "memory": "90000000",
        "memory_available": "300000000",
        "throughput": "80.0",
        "utilisation": "41.7",
        "throttled": "OFF",
    }


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        (None, "None"),
        ((), "OFF"),
        (("under_voltage_earlier",), "OFF"),
        (("throttled", "under_voltage_earlier"), "ON"),
    ],
)
def test_throttled_is_what_is_so_now(flags: tuple[str, ...] | None, state: str) -> None:
    template = DEVICE["components"]["throttled"]["value_template"]
    assert shown(template, device_metrics(throttled=flags)) == state


def test_a_board_without_a_sensor_has_an_unknown_temperature() -> None:
    template = DEVICE["components"]["temperature"]["value_template"]
    assert shown(template, device_metrics(temperature_celsius=None)) == "None"


@pytest.mark.parametrize("state", list(DeviceState))
def test_a_device_is_online_only_by_its_birth_and_its_figures_with_it(state: DeviceState) -> None:
    told, parts = status("pi-0", state), DEVICE["components"]
    online = state is DeviceState.ONLINE
    assert parts["online"]["state_topic"] == topics.status_topic(CLUSTER, "pi-0")
    assert shown(parts["online"]["value_template"], told) == ("ON" if online else "OFF")
    assert "availability_topic" not in parts["online"], "else off would be unavailable"
    for key, part in parts.items():
        if key != "online":
            assert part["availability_topic"] == topics.status_topic(CLUSTER, "pi-0")
            available = shown(part["availability_template"], told)
            assert available == ("online" if online else "offline")


def test_the_pipeline_shows_throughput_and_the_ledger() -> None:
    parts = PIPELINE["components"]
    assert {
        key: shown(part["value_template"], pipeline_metrics()) for key, part in parts.items()
    } == {
        "throughput": "100.0",
        "tokens": "None",
        "latency": "50.0",
        "delivered": "14",
        "lost": "0",
        "dead": "1",
    }
    assert {part["state_topic"] for part in parts.values()} == {
        topics.pipeline_metrics_filter(CLUSTER)
    }


def test_of_a_language_model_the_pipeline_shows_tokens() -> None:
    template = PIPELINE["components"]["tokens"]["value_template"]
    assert shown(template, pipeline_metrics(tokens_per_s=57.5)) == "57.5"


def test_what_a_device_says_of_itself_is_cut_and_in_no_template() -> None:
    told = Capabilities.model_validate(
        status().capabilities.model_dump() | {"machine": "{{ 7 * 7 }}" + "x" * 1900}  # type: ignore[union-attr]
    )
    view = DeviceView("pi-0", status("pi-0").model_copy(update={"capabilities": told}), (), None)
    document = json.loads(device_discovery(CLUSTER, view))
    assert len(document["device"]["model"]) <= 100
    assert "7 * 7" not in json.dumps(document["components"])


def test_topics_are_those_that_home_assistant_looks_at() -> None:
    """Its pattern, with a node for the cluster."""
    pattern = r"homeassistant/(\w+)/(?:([a-zA-Z0-9_-]+)/)?([a-zA-Z0-9_-]+)/config"
    for topic, name in (
        (topics.discovery_topic(CLUSTER, "pi-0"), "pi-0"),
        (topics.pipeline_discovery_topic(CLUSTER), "pipeline"),
    ):
        match = re.fullmatch(pattern, topic)
        assert match is not None
        assert match.groups() == ("device", "shardline_home", name)
        assert topics.is_discovery_topic(CLUSTER, topic)
        assert not topics.is_discovery_topic("away", topic)
    with pytest.raises(SettingsError):
        topics.discovery_topic(CLUSTER, "pipeline")
    for other in ("homeassistant/status", "homeassistant/device/shardline_home/a.b/config", ""):
        assert not topics.is_discovery_topic(CLUSTER, other)


class HomeAssistant:
    """Hears what it is told, as Home Assistant does."""

    def __init__(self, connect: Connect, cluster: str, unique: str) -> None:
        self.told: dict[str, bytes] = {}
        self._connection = connect(
            ConnectionSettings(name=f"home-assistant-{unique}"), Callbacks(on_delivery=self._hear)
        )
        self._connection.subscribe(topics.discovery_filter(cluster))

    def _hear(self, delivery: Delivery) -> None:
        delivery.ack()
        self.told[delivery.topic] = delivery.payload

    @property
    def knows(self) -> set[str]:
        return {topic.split("/")[-2] for topic, text in self.told.items() if text}

    def close(self) -> None:
        self._connection.close(forget_session=True)


Join = Callable[[], HomeAssistant]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.home_assistant.announcer.SETTLE_S", 0.8)


@pytest.fixture
def join(connect: Connect, cluster: str, unique: str) -> Iterator[Join]:
    joined: list[HomeAssistant] = []

    def one() -> HomeAssistant:
        joined.append(HomeAssistant(connect, cluster, f"{unique}-{len(joined)}"))
        return joined[-1]

    yield one
    for each in joined:
        each.close()


@pytest.fixture
def teller(connect: Connect, cluster: str) -> Iterator[Teller]:
    teller = Teller(connect, cluster)
    yield teller
    teller.close()


def settled(announcer: Announcer) -> Announcer:
    eventually(announcer.has_settled, "what is retained has come")
    return announcer


def names(found: tuple[str, ...]) -> set[str]:
    return {topic.split("/")[-2] for topic in found}


def test_what_was_announced_is_kept_and_what_changes_is_announced_again(
    quick: None, connect: Connect, cluster: str, unique: str, teller: Teller, join: Join
) -> None:
    teller.tell(status("pi-0"), status("pi-1"))
    with Announcer(connect, cluster, f"announcer-{unique}") as announcer:
        assert names(settled(announcer).announce().announced) == {"pi-0", "pi-1", "pipeline"}
        assert announcer.announce() == Told()
        teller.tell(status("pi-0", DeviceState.OFFLINE), status("pi-2"))
        eventually(lambda: names(announcer.announce().announced) == {"pi-2"}, "the new one")
        teller.publish(topics.status_topic(cluster, "pi-1"), b"", retain=True)
        eventually(lambda: names(announcer.announce().cleared) == {"pi-1"}, "the one that went")
    late = join()
    eventually(lambda: late.knows == {"pi-0", "pi-2", "pipeline"}, "retained messages")
    assert (
        json.loads(late.told[topics.discovery_topic(cluster, "pi-0")])["device"]["name"] == "pi-0"
    )


def test_what_an_earlier_one_announced_is_removed_and_nothing_else(
    quick: None, connect: Connect, cluster: str, unique: str, teller: Teller, join: Join
) -> None:
    teller.tell(status("pi-0"))
    other = f"{cluster}-other"
    elsewhere = topics.pipeline_discovery_topic(other)
    teller.publish(elsewhere, b"{}", retain=True)
    with Announcer(connect, cluster, f"announcer-{unique}") as announcer:
        settled(announcer).announce()
    with Announcer(connect, cluster, f"announcer-{unique}") as announcer:
        assert names(settled(announcer).withdraw().cleared) == {"pi-0", "pipeline"}
    late = join()
    with Announcer(connect, other, f"other-{unique}") as announcer:
        settled(announcer)
        assert announcer._retained == {elsewhere}
    assert late.knows == set()
    teller.publish(elsewhere, b"", retain=True)


def test_a_broker_that_forgot_is_told_again(
    quick: None, own_broker: EmbeddedBroker, cluster: str, unique: str
) -> None:
    connect = Connector(own_broker.address)
    with Announcer(connect, cluster, f"announcer-{unique}") as announcer:
        assert names(settled(announcer).announce().announced) == {"pipeline"}
        own_broker.kill()
        eventually(lambda: not announcer._connection.is_connected, "the loss is noticed")
        assert announcer.announce() == Told()
        own_broker.start()
        eventually(lambda: names(announcer.announce().announced) == {"pipeline"}, "told again")
        home = HomeAssistant(connect, cluster, unique)
        eventually(lambda: home.knows == {"pipeline"}, "kept again")
        home.close()
