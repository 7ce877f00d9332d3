"""What bounds throughput, and what would help: one situation a row, with the words that matter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client.watch.bound import BoundKind, explain, find_bound
from client.watch.view import STALE_AFTER_S
from contract import topics
from contract.metrics import StageMetrics
from contract.plan import Plan
from contract.status import DeviceState, ShardState
from tests.watch.cluster import MEMORY_BYTES, Cluster, delivery, plan_on, prediction

ONE_EACH = [["pi-0"], ["pi-1"], ["pi-2"]]
TWO_FOR_1 = [["pi-0"], ["pi-1", "pi-3"], ["pi-2"]]


@dataclass
class Case:
    """A running pipeline whose devices and client differ from an idle one as said."""

    kind: BoundKind
    says: tuple[str, ...]
    helps: tuple[str, ...] = ()
    stages: list[list[str]] = field(default_factory=lambda: ONE_EACH)
    devices: dict[str, dict[str, object]] = field(default_factory=dict)
    client: dict[str, object] | None = field(default_factory=dict)
    predicted: dict[str, object] | None = None
    after: Callable[[Cluster], object] = lambda _: None
    stage_index: int | None = None
    about: tuple[str, ...] = ()
    silent_about: tuple[str, ...] = ()


def offline(cluster: Cluster) -> None:
    cluster.online("pi-1", state=DeviceState.OFFLINE)


def busy(share: float, **more: object) -> dict[str, object]:
    return {"utilisation": share, "compute_ms_mean": 118.0, **more}


OF_TEXTS: dict[str, object] = {
    "images_per_s": 0.0,
    "batches_per_s": 0.0,
    "tokens_per_s": 57.5,
    "first_token_ms": 180.0,
}


def waiting(*times: tuple[float, float]) -> tuple[StageMetrics, ...]:
    """Each stage's wait and compute, in ms."""
    return tuple(
        StageMetrics(
            stage_index=index,
            wait_ms_p50=wait_ms,
            compute_ms_p50=compute_ms,
            utilisation=0.3,
            bubble_s=0.7,
        )
        for index, (wait_ms, compute_ms) in enumerate(times)
    )


CASES = {
    "no connection": Case(
        BoundKind.NO_CONNECTION,
        ("for 12 s", "last heard"),
        ("network",),
        after=lambda c: (c.state.set_connected(False), setattr(c.clock, "now", c.clock.now + 12)),
    ),
    "a stage whose device is lost": Case(
        BoundKind.STAGE_MISSING,
        ("Stage 1 has no ready device", "pi-1 is offline"),
        ("power", "publish PLAN --watch"),
        after=offline,
        stage_index=1,
        about=("pi-1",),
    ),
    "a stage that is loading": Case(
        BoundKind.STAGE_MISSING,
        ("pi-1 is loading",),
        ("loading its shard",),
        after=lambda c: c.online("pi-1", shard=ShardState.LOADING),
        stage_index=1,
        about=("pi-1",),
    ),
    "a stage that cannot load": Case(
        BoundKind.STAGE_MISSING,
        ("pi-1 is failed",),
        ("cannot be loaded",),
        after=lambda c: c.online("pi-1", shard=ShardState.FAILED, error="no memory"),
        stage_index=1,
        about=("pi-1",),
    ),
    "a stage whose devices hold nothing": Case(
        BoundKind.STAGE_MISSING,
        ("pi-1 is idle",),
        ("hands it out",),
        after=lambda c: c.online("pi-1", shard=ShardState.IDLE, plan_id=None, stage_index=None),
        stage_index=1,
        about=("pi-1",),
    ),
    "a stage nobody has heard of": Case(
        BoundKind.STAGE_MISSING,
        ("pi-1 is not seen",),
        after=lambda c: c.state.take(delivery(topics.status_topic("home", "pi-1"), b"")),
        stage_index=1,
        about=("pi-1",),
    ),
    "one replica of two is lost": Case(
        BoundKind.STAGE,
        ("Stage 1 on pi-3 computes 95 %",),
        ("counts on pi-1", "not ready"),
        stages=TWO_FOR_1,
        devices={"pi-3": busy(0.95)},
        after=offline,
        stage_index=1,
        about=("pi-3",),
    ),
    "nobody feeds": Case(
        BoundKind.NOT_FED, ("Nobody feeds", "3 stages"), ("shardline infer",), client=None
    ),
    "the client has gone": Case(
        BoundKind.NOT_FED,
        ("Nobody feeds",),
        after=lambda c: (
            setattr(c.clock, "now", c.clock.now + STALE_AFTER_S + 1),
            [c.metrics(name) for name in ("pi-0", "pi-1", "pi-2")],
        ),
    ),
    "the client feeds an earlier plan": Case(
        BoundKind.NOT_FED,
        ("earlier one", "client-1"),
        client={"plan_id": "f" * 16},
    ),
    "one stage busy, the others not": Case(
        BoundKind.STAGE,
        (
            "Stage 1 on pi-1 computes 97 % of the time (118 ms a batch)",
            "the other stages 61 % and 40 %",
            "80 images/s.",
        ),
        ("replica of stage 1", "shardline profile"),
        devices={"pi-0": busy(0.61), "pi-1": busy(0.97), "pi-2": busy(0.40)},
        stage_index=1,
        about=("pi-1",),
    ),
    "a busy stage, and a spare device": Case(
        BoundKind.STAGE,
        ("Stage 1",),
        ("Online without a stage: pi-8", "replica of stage 1"),
        devices={"pi-1": busy(0.97)},
        after=lambda c: (c.online("pi-8"), c.metrics("pi-8")),
        stage_index=1,
        about=("pi-1",),
        silent_about=("shardline profile",),
    ),
    "all stages busy": Case(
        BoundKind.STAGE,
        ("computes 97 %", "90 % and 92 %"),
        ("about even", "--what-if"),
        devices={"pi-0": busy(0.90), "pi-1": busy(0.97), "pi-2": busy(0.92)},
        stage_index=1,
        about=("pi-1",),
    ),
    "replicas busy together": Case(
        BoundKind.STAGE,
        ("Stage 1 on pi-1 and pi-3 computes 95 %",),
        stages=TWO_FOR_1,
        devices={"pi-1": busy(0.97), "pi-3": busy(0.93)},
        stage_index=1,
        about=("pi-1", "pi-3"),
    ),
    "slower than predicted": Case(
        BoundKind.STAGE,
        ("80 images/s, predicted 100",),
        ("replica of stage 1", "118 ms a batch where the plan expected 30"),
        devices={"pi-1": busy(0.97)},
        predicted={},
        stage_index=1,
        about=("pi-1",),
    ),
    "a processor busy with messages": Case(
        BoundKind.STAGE,
        ("processor busy 96 % of the time and computes in 50 %", "receiving"),
        devices={"pi-1": {"utilisation": 0.5, "cpu_percent": 384.0}},
        stage_index=1,
        about=("pi-1",),
    ),
    "batches that queue at a stage": Case(
        BoundKind.STAGE,
        (
            "Stage 2 on pi-2 is where batches wait: 135 ms each, for 50 ms of computing",
            "computes only 30 %",
        ),
        ("about even",),
        client={"stages": waiting((4.0, 30.0), (29.0, 30.0), (135.0, 50.0))},
        stage_index=2,
        about=("pi-2",),
    ),
    "batches that wait no longer than they are computed": Case(
        BoundKind.ON_THE_WAY,
        ("116 of 310 ms",),
        client={"stages": waiting((4.0, 30.0), (29.0, 30.0), (50.5, 50.5))},
    ),
    "a weak supply": Case(
        BoundKind.THROTTLED,
        ("pi-1 is slowed down by its board: under voltage and frequency capped",),
        ("supply", "too warm"),
        devices={
            "pi-1": busy(0.97, throttled=("under_voltage", "frequency_capped", "throttled_earlier"))
        },
        stage_index=1,
        about=("pi-1",),
    ),
    "a weak supply before now": Case(
        BoundKind.STAGE,
        ("Stage 1",),
        devices={"pi-1": busy(0.97, throttled=("under_voltage_earlier",))},
        stage_index=1,
        about=("pi-1",),
    ),
    "hot, but not what bounds": Case(
        BoundKind.STAGE,
        ("Stage 1",),
        devices={"pi-1": busy(0.97), "pi-0": {"throttled": ("soft_temperature_limit",)}},
        stage_index=1,
        about=("pi-1",),
    ),
    "hot, with nothing busy": Case(
        BoundKind.THROTTLED,
        ("pi-0 is slowed down by its board: soft temperature limit",),
        ("heat sink",),
        devices={"pi-0": {"throttled": ("soft_temperature_limit",)}},
        stage_index=0,
        about=("pi-0",),
    ),
    "short of memory": Case(
        BoundKind.MEMORY,
        ("pi-1 is short of memory: 40 MB",),
        ("--no-prepack", "smaller batch"),
        devices={"pi-1": busy(0.97, memory_available_bytes=MEMORY_BYTES // 100)},
        stage_index=1,
        about=("pi-1",),
    ),
    "a client that feeds little": Case(
        BoundKind.CLIENT,
        ("client-1 feeds less", "2.0 of 6 batches", "30 %"),
        ("dummy:1000",),
        client={"ledger": {"in_flight": 2}},
    ),
    "two clients that feed little": Case(
        BoundKind.CLIENT,
        ("client-1 and client-2 feed less", "4.0 of 12"),
        client={"ledger": {"in_flight": 2}},
        after=lambda c: c.feeds("client-2", ledger={"in_flight": 2}),
    ),
    "one text at a time": Case(
        BoundKind.CLIENT,
        ("client-1 feeds less", "1.0 of 3 batches"),
        ("generate --sequences", "plan --sequences"),
        client={"window": 4, "ledger": {"in_flight": 1}} | OF_TEXTS,
        silent_about=("infer",),
    ),
    "a text for every stage": Case(
        BoundKind.ON_THE_WAY,
        ("window is full", "busiest device works 30 %"),
        ("more texts",),
        client={"window": 4, "ledger": {"in_flight": 3}} | OF_TEXTS,
        silent_about=("infer", " ms ("),
    ),
    "a stage of a language model": Case(
        BoundKind.STAGE,
        ("57.5 tokens/s",),
        devices={"pi-1": busy(0.97)},
        client=OF_TEXTS,
        stage_index=1,
        about=("pi-1",),
        silent_about=("images/s",),
    ),
    "a window of one batch": Case(
        BoundKind.WINDOW,
        ("window is too small: 1 batches in flight for 3 devices",),
        ("--window 6",),
        client={"window": 1, "ledger": {"in_flight": 1}},
    ),
    "a small window whose next batch is on its way": Case(
        BoundKind.WINDOW,
        ("2 batches in flight",),
        client={"window": 2, "ledger": {"in_flight": 1}},
    ),
    "a window smaller than the plan's": Case(
        BoundKind.WINDOW,
        ("6 batches", "predicted 100"),
        ("--window 9",),
        predicted={"window": 9},
    ),
    "a link by the plan's figures": Case(
        BoundKind.LINK,
        ("link of pi-1 (stage 1) is taken 95 %", "3.7 MB/s", "busy 30 %"),
        ("--codec auto", "faster link"),
        predicted={"pi-1": 95.0},
        stage_index=1,
        about=("pi-1",),
    ),
    "a link that passes what the plan thought possible": Case(
        BoundKind.ON_THE_WAY, ("on their way",), predicted={"pi-1": 200.0}
    ),
    "a link by its waiting": Case(
        BoundKind.LINK,
        ("link of pi-1", "sending 90 %"),
        devices={"pi-1": {"publish_ms_mean": 90.0}},
        stage_index=1,
        about=("pi-1",),
    ),
    "a link as fast as a usual one": Case(
        BoundKind.LINK,
        ("carries 94 % of what 100 Mbit/s can", "11.8 MB/s"),
        devices={"pi-2": {"bytes_in_per_s": 11.8e6}},
        stage_index=2,
        about=("pi-2",),
    ),
    "a link faster than a usual one": Case(
        BoundKind.ON_THE_WAY, ("on their way",), devices={"pi-2": {"bytes_in_per_s": 40e6}}
    ),
    "the broker by the plan's figures": Case(
        BoundKind.BROKER,
        ("broker's link is taken 96 %",),
        ("--edge-broker", "--codec auto"),
        predicted={"broker_ms": 24.0},
    ),
    "the broker keeps most devices waiting": Case(
        BoundKind.BROKER,
        ("2 of 3 devices wait for it", "90 ms for each output"),
        ("--edge-broker",),
        devices={"pi-0": {"publish_ms_mean": 90.0}, "pi-1": {"publish_ms_mean": 90.0}},
        about=("pi-0", "pi-1"),
    ),
    "the broker drops": Case(
        BoundKind.BROKER,
        ("dropped 12 messages",),
        ("max_queued_messages",),
        after=lambda c: [
            c.state.take(delivery(topics.BROKER_DROPPED, total)) for total in ("40", "52")
        ],
    ),
    "nothing is busy": Case(
        BoundKind.ON_THE_WAY,
        ("window is full", "208 of 310 ms (67 %)", "busiest device works 30 %"),
        ("--window 12", "shardline trace"),
    ),
    "nothing is known": Case(
        BoundKind.ON_THE_WAY,
        ("window is full",),
        client={"latency_ms_p50": None, "stages": ()},
        silent_about=("of 310",),
    ),
}  # fmt: skip


def situation(case: Case, folder: Path) -> Cluster:
    predicted = None if case.predicted is None else prediction(case.stages, **case.predicted)
    cluster = Cluster(plan_on(folder, case.stages, predicted))
    for name in (name for names in case.stages for name in names):
        cluster.online(name)
    for _second in range(3):
        for name in (name for names in case.stages for name in names):
            cluster.metrics(name, **case.devices.get(name, {}))
        if case.client is not None:
            cluster.feeds("client-1", **{**case.client})
        cluster.clock.now += 1
    case.after(cluster)
    return cluster


@pytest.mark.parametrize("name", CASES)
def test_what_bounds_throughput_is_named_with_its_figures_and_a_remedy(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    view = situation(case, tmp_path).view()
    found = find_bound(view)
    text = " ".join([found.what, *found.helps])
    assert found.kind is case.kind, text
    assert [words for words in case.says if words not in found.what] == [], text
    assert [words for words in case.helps if words not in " ".join(found.helps)] == [], text
    assert [words for words in case.silent_about if words in text] == []
    assert (found.stage_index, found.devices) == (case.stage_index, case.about)
    assert len(found.helps) <= 2
    assert explain(view) == [found.what, *found.helps]


def test_without_a_plan_there_is_nothing_to_bound(tmp_path: Path) -> None:
    found = find_bound(Cluster().view())
    assert found.kind is BoundKind.NO_PLAN
    assert "shardline publish" in found.helps[0]
    plan = plan_on(tmp_path, ONE_EACH)
    unplaced = Plan.model_validate({**dict(plan), "placement": (), "topic_map": ()})
    cluster = Cluster()
    cluster.publish_plan(unplaced)
    assert find_bound(cluster.view()).kind is BoundKind.NO_PLAN


def test_every_kind_has_its_case() -> None:
    assert {case.kind for case in CASES.values()} | {BoundKind.NO_PLAN} == set(BoundKind)


def test_a_single_second_does_not_decide(tmp_path: Path) -> None:
    """Figures are means: a stage that was busy for one of five seconds is not what bounds."""
    cluster = situation(CASES["nothing is busy"], tmp_path)
    cluster.metrics("pi-1", **busy(1.0))
    assert find_bound(cluster.view()).kind is BoundKind.ON_THE_WAY
    for _second in range(5):
        cluster.metrics("pi-1", **busy(1.0))
    assert find_bound(cluster.view()).kind is BoundKind.STAGE
