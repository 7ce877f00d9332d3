"""Topics: what is built is parsed back, a filter matches its own topics, no name is a wildcard."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from contract import topics
from contract.errors import SettingsError, WireFormatError
from contract.topics import Topic, parse_topic

PLAN_ID = "0123456789abcdef"
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True).filter(
    lambda name: name not in ("pipeline", "trace")
)

# kind: how it is built, what it parses to
BUILDERS: dict[str, tuple[Callable[[str, str, str], str], Callable[[str, str, str], Topic]]] = {
    "plan": (lambda c, _t, _s: topics.plan_topic(c), lambda c, _t, _s: Topic("plan", c)),
    "status": (
        lambda c, _t, s: topics.status_topic(c, s),
        lambda c, _t, s: Topic("status", c, sender=s),
    ),
    "input": (
        lambda c, t, s: topics.input_topic(c, t, PLAN_ID, 3, s),
        lambda c, t, s: Topic("input", c, t, s, PLAN_ID, 3),
    ),
    "command": (topics.command_topic, lambda c, t, s: Topic("command", c, t, s)),
    "answer": (topics.answer_topic, lambda c, t, s: Topic("answer", c, t, s)),
    "result": (topics.result_topic, lambda c, t, s: Topic("result", c, t, s)),
    "nack": (topics.nack_topic, lambda c, t, s: Topic("nack", c, t, s)),
    "blob": (topics.blob_topic, lambda c, t, s: Topic("blob", c, t, s)),
    "clock": (topics.clock_topic, lambda c, t, s: Topic("clock", c, t, s)),
    "metrics": (
        lambda c, _t, s: topics.metrics_topic(c, s),
        lambda c, _t, s: Topic("metrics", c, sender=s),
    ),
    "pipeline_metrics": (
        lambda c, _t, s: topics.pipeline_metrics_topic(c, s),
        lambda c, _t, s: Topic("pipeline_metrics", c, sender=s),
    ),
    "trace": (
        lambda c, _t, s: topics.trace_topic(c, s),
        lambda c, _t, s: Topic("trace", c, sender=s),
    ),
    "event": (
        lambda c, _t, s: topics.event_topic(c, s),
        lambda c, _t, s: Topic("event", c, sender=s),
    ),
}
ALL_TOPICS = {kind: build("home", "pi-1", "pi-0") for kind, (build, _) in BUILDERS.items()}

FILTERS = {
    "status": (topics.status_filter("home"), {"status"}),
    "input": (topics.input_filter("home", "pi-1"), {"input"}),
    "command": (topics.command_filter("home", "pi-1"), {"command"}),
    "answer": (topics.answer_filter("home", "pi-1"), {"answer"}),
    "result": (topics.result_filter("home", "pi-1"), {"result"}),
    "nack": (topics.nack_filter("home", "pi-1"), {"nack"}),
    "blob": (topics.blob_filter("home", "pi-1"), {"blob"}),
    "clock": (topics.clock_filter("home", "pi-1"), {"clock"}),
    "metrics of a cluster": (
        topics.metrics_filter("home"),
        {"metrics", "pipeline_metrics", "trace"},
    ),
    "metrics of all": (topics.metrics_filter(), {"metrics", "pipeline_metrics", "trace"}),
    "event": (topics.event_filter("home"), {"event"}),
}
BAD_NAMES = [
    "",
    "+",
    "#",
    "a/b",
    "/",
    "a+",
    "a#",
    " ",
    "a b",
    "-a",
    "_a",
    "$SYS",
    "a\0",
    "a\n",
    "é",
    "pipeline",
    "trace",
    "a" * 64,
]


@pytest.mark.parametrize("kind", BUILDERS)
@given(cluster=names, to=names, sender=names)
def test_what_is_built_is_parsed_back(kind: str, cluster: str, to: str, sender: str) -> None:
    build, expected = BUILDERS[kind]
    assert parse_topic(build(cluster, to, sender)) == expected(cluster, to, sender)


def test_the_topics_are_frozen() -> None:
    """They are agreed between machines of different age, and people type them."""
    assert ALL_TOPICS == {
        "plan": "shardline/home/plan",
        "status": "shardline/home/device/pi-0/status",
        "input": "shardline/home/device/pi-1/in/0123456789abcdef/3/pi-0",
        "command": "shardline/home/device/pi-1/command/pi-0",
        "answer": "shardline/home/answer/pi-1/pi-0",
        "result": "shardline/home/client/pi-1/result/pi-0",
        "nack": "shardline/home/client/pi-1/nack/pi-0",
        "blob": "shardline/home/blob/pi-1/pi-0",
        "clock": "shardline/home/clock/pi-1/pi-0",
        "metrics": "shardline/home/metrics/pi-0",
        "pipeline_metrics": "shardline/home/metrics/pipeline/pi-0",
        "trace": "shardline/home/metrics/trace/pi-0",
        "event": "shardline/home/event/pi-0",
    }
    assert topics.metrics_filter() == "shardline/+/metrics/#"


@pytest.mark.parametrize("kind", [k for k in BUILDERS if k not in ("plan", "status")])
def test_the_sender_is_the_last_level(kind: str) -> None:
    assert ALL_TOPICS[kind].rpartition("/")[2] == "pi-0"


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_matches_its_own_topics_and_no_other(name: str) -> None:
    topic_filter, kinds = FILTERS[name]
    matched = {kind for kind, topic in ALL_TOPICS.items() if topic_matches_sub(topic_filter, topic)}
    assert matched == kinds


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "metrics of all"])
def test_a_filter_of_one_cluster_matches_no_other(name: str) -> None:
    topic_filter, kinds = FILTERS[name]
    for kind in kinds:
        elsewhere = BUILDERS[kind][0]("office", "pi-1", "pi-0")
        assert not topic_matches_sub(topic_filter, elsewhere)


def test_a_process_goes_on_without_clocks_and_the_broker_s_counter_only() -> None:
    optional = {
        name for name, (topic_filter, _) in FILTERS.items() if topics.is_optional(topic_filter)
    }
    assert optional == {"clock"}
    assert topics.is_optional(topics.BROKER_DROPPED)
    assert not topics.is_optional(topics.plan_topic("clock"))


def test_a_filter_of_one_receiver_matches_no_other() -> None:
    for kind in ("input", "command", "answer", "result", "nack", "blob", "clock"):
        elsewhere = BUILDERS[kind][0]("home", "pi-2", "pi-0")
        assert not topic_matches_sub(FILTERS[kind][0], elsewhere)


@pytest.mark.parametrize("bad", BAD_NAMES, ids=lambda bad: repr(bad)[:12])
def test_a_bad_name_never_becomes_a_level(bad: str) -> None:
    for build, parsed in BUILDERS.values():
        fields = parsed("c", "t", "s")
        for used, arguments in (
            (True, (bad, "t", "s")),
            (fields.to is not None, ("c", bad, "s")),
            (fields.sender is not None, ("c", "t", bad)),
        ):
            if used:
                with pytest.raises(SettingsError):
                    build(*arguments)
    for build_filter in (
        topics.status_filter,
        topics.metrics_filter,
        topics.event_filter,
        *(lambda name, f=f: f("c", name) for f in (topics.input_filter, topics.command_filter)),
        *(lambda name, f=f: f("c", name) for f in (topics.result_filter, topics.nack_filter)),
        lambda name: topics.blob_filter("c", name),
        lambda name: topics.answer_filter("c", name),
        lambda name: topics.clock_filter("c", name),
    ):
        with pytest.raises(SettingsError):
            build_filter(bad)


@pytest.mark.parametrize("plan_id", ["", "+", "#", "a/b", "0123456789ABCDEF", "0" * 15])
def test_a_bad_plan_id_never_becomes_a_level(plan_id: str) -> None:
    with pytest.raises(SettingsError):
        topics.input_topic("home", "pi-1", plan_id, 0, "pi-0")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "shardline",
        "shardline/home",
        "shardline//plan",
        "/shardline/home/plan",
        "Shardline/home/plan",
        "other/home/plan",
        "shardline/home/plan/",
        "shardline/home/plan/x",
        "shardline/+/plan",
        "shardline/home/device/pi-0",
        "shardline/home/device//status",
        "shardline/home/device/+/status",
        "shardline/home/device/#",
        "shardline/home/device/pi-0/in/0123456789abcdef/0",
        "shardline/home/device/pi-0/in/0123456789abcde/0/pi-1",
        "shardline/home/device/pi-0/in/0123456789ABCDEF/0/pi-1",
        "shardline/home/device/pi-0/in/0123456789abcdef/-1/pi-1",
        "shardline/home/device/pi-0/in/0123456789abcdef/x/pi-1",
        "shardline/home/device/pi-0/in/0123456789abcdef/٣/pi-1",
        "shardline/home/device/pi-0/in/0123456789abcdef/99999/pi-1",
        "shardline/home/device/pi-0/in/0123456789abcdef/0/pi-1/more",
        "shardline/home/client/c/result",
        "shardline/home/client/c/other/pi-1",
        "shardline/home/metrics",
        "shardline/home/metrics/pipeline",
        "shardline/home/metrics/pi 0",
        "shardline/home/event/" + "x" * 64,
        "$SYS/broker/uptime",
    ],
)
def test_a_topic_of_another_form_is_refused(topic: str) -> None:
    with pytest.raises(WireFormatError, match="topic"):
        parse_topic(topic)


levels = st.sampled_from(
    [
        "shardline",
        "home",
        "plan",
        "device",
        "in",
        "status",
        "client",
        "result",
        "metrics",
        "pipeline",
        "event",
        "blob",
        "clock",
        "trace",
        PLAN_ID,
        "0",
        "7",
        "00",
        "07",
        "pi-0",
        "",
        "+",
        "#",
    ]
)


@given(st.lists(levels, max_size=8).map("/".join))
def test_a_topic_has_one_spelling(topic: str) -> None:
    """What parses is what would have been built, so two texts never mean one place."""
    try:
        parsed = parse_topic(topic)
    except WireFormatError:
        return
    to, sender = parsed.to or "x", parsed.sender or "x"
    if parsed.kind == "input":
        assert parsed.plan_id is not None
        assert parsed.stage_index is not None
        built = topics.input_topic(parsed.cluster, to, parsed.plan_id, parsed.stage_index, sender)
    else:
        built = BUILDERS[parsed.kind][0](parsed.cluster, to, sender)
    assert built == topic


def test_a_stage_number_has_one_spelling() -> None:
    with pytest.raises(WireFormatError):
        parse_topic("shardline/home/device/pi-0/in/0123456789abcdef/007/pi-1")
