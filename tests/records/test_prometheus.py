"""What Prometheus finds: names by its conventions, values as published, nothing of who is gone."""

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from client.records.exposition import parse_listen, serving
from client.records.prometheus import FAMILIES, ClusterCollector, samples
from client.watch.state import ClusterState
from client.watch.view import STALE_AFTER_S, ClusterView
from contract import topics
from contract.errors import SettingsError
from contract.metrics import DeviceMetrics, Ledger
from contract.plan import Plan
from contract.status import DeviceState
from tests.records.told import as_json, delivered, device_metrics, pipeline_metrics, status
from tests.tiny import make_tiny_plan

CLUSTER = "home"
UNITS = ("seconds", "bytes", "ratio", "celsius", "per_second")
COUNTED = (
    *("batches", "messages", "connections", "attempts", "results", "reconnects", "images"),
    *("sequences", "caches", "tokens"),
)
STATES = ("online", "connected", "throttled", "info")


class Cluster:
    """The state of a cluster, with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.state = ClusterState(CLUSTER, lambda: self.now)
        self.state.set_connected(True)

    def hear(self, topic: str, text: bytes) -> None:
        assert self.state.take(delivered(topic, text))

    def view(self) -> ClusterView:
        return self.state.view()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_tiny_plan(tmp_path, cluster=CLUSTER)


@pytest.fixture
def cluster(plan: Plan) -> Cluster:
    told = Cluster()
    told.hear(topics.plan_topic(CLUSTER), plan.to_message().encode())
    for device in ("pi-0", "pi-1"):
        told.hear(topics.status_topic(CLUSTER, device), as_json(status(device)))
        metrics = device_metrics(device, plan_id=plan.plan_id, throttled=("throttled",))
        told.hear(topics.metrics_topic(CLUSTER, device), as_json(metrics))
    of_texts = {"tokens_per_s": 57.5, "first_token_ms": 182.0, "near_ties_total": 2}
    text = as_json(pipeline_metrics(plan_id=plan.plan_id, **of_texts))
    told.hear(topics.pipeline_metrics_topic(CLUSTER, "client-a"), text)
    told.hear(topics.BROKER_UPTIME, b"12 seconds")
    told.hear(topics.BROKER_BYTES_SENT, b"345")
    told.hear(topics.BROKER_BYTES_RECEIVED, b"234")
    told.hear(topics.BROKER_DROPPED, b"0")
    told.hear(topics.BROKER_CLIENTS, b"5")
    return told


Found = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scraped(text: str) -> Found:
    """As Prometheus' own parser reads it."""
    found: Found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def exposed(view: ClusterView) -> Found:
    registry = CollectorRegistry()
    registry.register(ClusterCollector(lambda: view))
    return scraped(generate_latest(registry).decode())


def labels(**named: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"cluster": CLUSTER, **named}.items()))


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_a_name_keeps_to_the_conventions(family: object) -> None:
    name = getattr(family, "name")  # noqa: B009
    assert re.fullmatch(r"shardline_[a-z]+(_[a-z]+)*", name)
    bare = name.removesuffix("_total")
    assert bare.endswith((*UNITS, *COUNTED, *STATES)), "the unit is missing, or a new one"
    assert not re.search(r"milli|micro|kilo|mega|percent\b|_ms\b|_mb\b", name)
    assert not name.endswith(("_count", "_sum", "_bucket")), "reserved for summaries"
    told = getattr(family, "help")  # noqa: B009
    assert told.endswith(".")
    assert "quantile" not in getattr(family, "labels")  # noqa: B009


def test_everything_that_only_grows_and_nothing_else_is_a_counter(cluster: Cluster) -> None:
    """Each is known again by a value of its own."""
    grows = [name for name in DeviceMetrics.model_fields if name.endswith("_total")]
    ledger = [name for name in Ledger.model_fields if name not in ("in_flight", "lost")]
    values = {name: 7_000_000 + index for index, name in enumerate((*grows, *ledger, "ties"))}
    of_device = device_metrics("pi-0", **{name: values[name] for name in grows})
    counted = pipeline_metrics().ledger.model_copy(update={name: values[name] for name in ledger})
    of_client = pipeline_metrics(ledger=counted, near_ties_total=values["ties"])
    cluster.hear(topics.metrics_topic(CLUSTER, "pi-0"), as_json(of_device))
    cluster.hear(topics.pipeline_metrics_topic(CLUSTER, "client-a"), as_json(of_client))
    found = samples(cluster.view())
    shown = {
        name: [metric for metric, told in found.items() if value in told.values()]
        for name, value in values.items()
    }
    assert all(len(metrics) == 1 for metrics in shown.values()), shown
    counters = {family.name for family in FAMILIES if family.kind == "counter"}
    of_others = {name for name in counters if re.match("shardline_(broker|watch)_", name)}
    assert {metrics[0] for metrics in shown.values()} == counters - of_others
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_of_a_language_model_tokens_are_predicted(cluster: Cluster, plan: Plan) -> None:
    view = cluster.view()
    assert view.plan is not None
    prediction = SimpleNamespace(images_per_s=12.0)
    images = SimpleNamespace(plan_id=plan.plan_id, prediction=prediction, decoding=None)
    texts = SimpleNamespace(plan_id=plan.plan_id, prediction=prediction, decoding=object())
    for told, unit in ((images, "images"), (texts, "tokens")):
        found = samples(replace(view, plan=told))  # type: ignore[arg-type]
        predicted = {name: value for name, value in found.items() if "_predicted_" in name}
        assert predicted == {f"shardline_plan_predicted_{unit}_per_second": {(): 12.0}}


def test_without_the_broker_nobody_is_said_to_be_online(cluster: Cluster) -> None:
    assert "shardline_device_online" in exposed(cluster.view())
    cluster.state.set_connected(False)
    assert "shardline_device_online" not in exposed(cluster.view())


def test_what_is_exposed_is_what_was_published(cluster: Cluster, plan: Plan) -> None:
    found = exposed(cluster.view())
    here, metrics = labels(device="pi-0"), device_metrics()
    assert found["shardline_device_batches_total"][here] == metrics.batches_total
    assert found["shardline_device_compute_seconds"][here] == pytest.approx(0.004)
    assert found["shardline_device_memory_resident_bytes"][here] == metrics.rss_bytes
    assert found["shardline_device_temperature_celsius"][here] == 55.5
    assert found["shardline_device_cpu_ratio"][here] == 0.5
    assert found["shardline_device_tokens_per_second"][here] == 12.5
    assert found["shardline_device_cache_bytes"][here] == 4_000_000
    assert found["shardline_device_cached_sequences"][here] == 3
    assert found["shardline_device_evicted_caches_total"][here] == 1
    fed = labels(client="client-a")
    assert found["shardline_pipeline_tokens_per_second"][fed] == 57.5
    assert found["shardline_pipeline_first_token_seconds"][fed] == 0.182
    assert found["shardline_pipeline_near_tied_tokens_total"][fed] == 2
    assert found["shardline_device_online"] == {here: 1.0, labels(device="pi-1"): 1.0}
    info = labels(device="pi-0", stage="0", plan_id=plan.plan_id, shard="ready")
    assert found["shardline_device_info"][info] == 1
    flags = found["shardline_device_throttled"]
    assert flags[labels(device="pi-0", flag="throttled")] == 1
    assert flags[labels(device="pi-0", flag="under_voltage")] == 0
    client = labels(client="client-a")
    assert found["shardline_pipeline_images_per_second"][client] == 100
    assert found["shardline_pipeline_delivered_batches_total"][client] == 14
    assert found["shardline_pipeline_lost_batches"][client] == 0
    latency = found["shardline_pipeline_latency_seconds"]
    assert latency[labels(client="client-a", percentile="95")] == 0.05
    stage = labels(client="client-a", stage="2")
    assert found["shardline_stage_utilisation_ratio"][stage] == 0.75
    assert found["shardline_broker_sent_bytes_total"][labels()] == 345
    assert found["shardline_watch_connected"][labels()] == 1


def test_every_metric_is_exposed_by_a_cluster_that_tells_all(cluster: Cluster) -> None:
    names = {family.name for family in FAMILIES}
    assert set(samples(cluster.view())) == names - {
        "shardline_plan_predicted_images_per_second",
        "shardline_plan_predicted_tokens_per_second",
    }
    assert set(exposed(cluster.view())) == set(samples(cluster.view()))


def test_whoever_is_silent_vanishes_and_a_device_is_still_on_or_off(cluster: Cluster) -> None:
    cluster.now += STALE_AFTER_S + 1
    metrics = as_json(device_metrics("pi-1"))
    cluster.hear(topics.metrics_topic(CLUSTER, "pi-1"), metrics)
    gone = as_json(status("pi-0", DeviceState.OFFLINE))
    cluster.hear(topics.status_topic(CLUSTER, "pi-0"), gone)
    found = exposed(cluster.view())
    assert found["shardline_device_images_total"].keys() == {labels(device="pi-1")}
    assert found["shardline_device_online"][labels(device="pi-0")] == 0
    assert not any("client" in dict(told) for family in found.values() for told in family)
    cluster.hear(topics.status_topic(CLUSTER, "pi-0"), b"")  # it is taken out of the cluster
    assert labels(device="pi-0") not in exposed(cluster.view())["shardline_device_online"]


def test_without_the_broker_nothing_old_is_told_of_it(cluster: Cluster) -> None:
    found = exposed(replace(cluster.view(), is_connected=False))
    assert found["shardline_watch_connected"][labels()] == 0
    assert not [name for name in found if name.startswith("shardline_broker")]


def test_what_a_device_makes_up_becomes_no_label_and_no_line(cluster: Cluster) -> None:
    made_up = 'x" 1\nshardline_device_online{device="evil'
    metrics = device_metrics("pi-0", plan_id=made_up, shard=made_up, throttled=(made_up,))
    cluster.hear(topics.metrics_topic(CLUSTER, "pi-0"), as_json(metrics))
    registry = CollectorRegistry()
    registry.register(ClusterCollector(cluster.view))
    text = generate_latest(registry).decode()
    assert "evil" not in text
    assert (
        labels(device="pi-0", stage="0", plan_id="", shard="")
        in scraped(text)["shardline_device_info"]
    )


def test_a_number_that_no_float_can_hold_is_none_of_a_device_s(cluster: Cluster) -> None:
    text = as_json(device_metrics("pi-0")).replace(
        b'"rss_bytes":90000000', b'"rss_bytes":1' + b"0" * 400
    )
    assert not cluster.state.take(delivered(topics.metrics_topic(CLUSTER, "pi-0"), text))
    exposed(cluster.view())


@pytest.fixture
def address(cluster: Cluster) -> Iterator[str]:
    with serving("0", cluster.view) as address:
        yield address


def test_it_is_served_on_loopback_as_text_of_prometheus(cluster: Cluster, address: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/metrics", address)
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        found = scraped(answer.read().decode())
    assert found == exposed(cluster.view())
    cluster.hear(topics.metrics_topic(CLUSTER, "pi-0"), as_json(device_metrics(images_total=4711)))
    with urllib.request.urlopen(address, timeout=10) as answer:
        found = scraped(answer.read().decode())
    assert found["shardline_device_images_total"][labels(device="pi-0")] == 4711


def test_an_address_that_no_host_can_have_is_told(cluster: Cluster) -> None:
    with (
        pytest.raises(SettingsError, match="no host can be called so"),
        serving("192.168..1:9464", cluster.view),
    ):
        pass


def test_a_port_that_is_taken_is_told(cluster: Cluster, address: str) -> None:
    taken = address.split("/")[2]
    with pytest.raises(SettingsError, match="cannot listen there"), serving(taken, cluster.view):
        pass


def test_the_port_is_free_again_afterwards(cluster: Cluster) -> None:
    with serving("0", cluster.view) as address:
        place = address.split("/")[2]
    with serving(place, cluster.view) as again:
        assert again == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("pi-0:0", ("pi-0", 0)),
    ],
)
def test_where_to_listen(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "http", "host:", ":9464", "host:99999", "host:9a", "-1"])
def test_where_nobody_can_listen(text: str) -> None:
    with pytest.raises(SettingsError, match="expected PORT or HOST:PORT"):
        parse_listen(text)
