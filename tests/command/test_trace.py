"""`shardline trace`: listens to whoever feeds, or feeds itself; what is missing, it says."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from client.batch import Batch
from client.pipeline import Pipeline
from client.settings import ClientSettings
from client.trace_parts import decompose
from contract.errors import ExitCode
from contract.plan import Plan
from shardline.report.gantt import draw_gantt, rows_of
from shardline.report.svg import Drawing
from tests.client.traces import DEVICES, LENGTHS, offsets, stream
from tests.command.test_command import one_line
from tests.conftest import Run, StartStage
from tests.pipeline.fakes import make_batches, publish_plan
from tests.tiny import make_tiny_plan

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert(1)</script>\x1b[2J&\"'"


@pytest.fixture
def plan(
    tmp_path: Path, connect: Connect, cluster: str, unique: str, start_stage: StartStage
) -> Plan:
    """Published, with three stages that serve it."""
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_tiny_plan(tmp_path / "plans", devices=devices, cluster=cluster)
    for device in devices:
        start_stage(device, tmp_path / "plans")
    publish_plan(connect, plan, cluster)
    return plan


@pytest.fixture
def at(shared_broker: EmbeddedBroker, cluster: str) -> list[str]:
    """Options: where to listen."""
    return ["--broker", str(shared_broker.address), "--cluster", cluster]


Feed = Callable[..., None]


@pytest.fixture
def feed(plan: Plan, connect: Connect, cluster: str) -> Iterator[Feed]:
    """Lets clients feed in threads until the end of the test; returns when one has a result."""
    stopping, threads = threading.Event(), list[threading.Thread]()

    def batches() -> Iterator[Batch]:
        while not stopping.is_set():
            yield make_batches(1)[0]
            time.sleep(0.02)

    def start(name: str, **settings: object) -> None:
        feeds = threading.Event()

        def run() -> None:
            own = ClientSettings(name=name, cluster=cluster, **settings)  # type: ignore[arg-type]
            with Pipeline(own, connect) as pipeline:
                pipeline.open()
                for _ in pipeline.run(batches()):
                    feeds.set()

        threads.append(threading.Thread(target=run, name=name))
        threads[-1].start()
        assert feeds.wait(30)

    yield start
    stopping.set()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_it_listens_to_whoever_feeds_and_writes_what_is_asked_for(
    run: Run, plan: Plan, feed: Feed, at: list[str], unique: str, tmp_path: Path
) -> None:
    feed(f"client-{unique}")
    done = run("trace", *at, "--perfetto", "trace.json", "--picture", "pipeline.svg")
    assert done.code == 0, done
    text = " ".join(done.out.split())
    assert f"where the time of 8 batches of client-{unique} went" in text
    for words in ("queue at the client", "transfer to stage 2", "compute", "difference"):
        assert words in text
    for spot in plan.placement:
        assert f"{spot.replicas[0].device} " in text
    assert "clocks: " in text
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert len({e["id"] for e in trace["traceEvents"] if e["ph"] == "s"}) == 8
    picture = ElementTree.fromstring((tmp_path / "pipeline.svg").read_text())
    assert picture.tag == f"{SVG}svg"


def test_of_two_clients_one_can_be_chosen_and_the_other_is_named(
    run: Run, feed: Feed, at: list[str], unique: str
) -> None:
    names = [f"client-{letter}-{unique}" for letter in "ab"]
    for name in names:
        feed(name)
    # More than one message holds, so that the other's second has passed, too.
    done = run("trace", *at, "--batches", 100, "--client", names[1])
    assert done.code == 0, done
    assert f"100 batches of {names[1]}" in done.out
    assert f"others feed, too: {names[0]}" in done.err


def test_it_feeds_made_up_batches_itself(run: Run, plan: Plan, at: list[str]) -> None:
    done = run("trace", *at, "--feed", "--batches", 5, "--json")
    assert done.code == 0, done
    told = json.loads(done.out)
    assert len(told["batches"]) == 5
    assert len(told["clocks"]) == plan.num_stages
    assert all(clock["is_measured"] for clock in told["clocks"])
    assert told["sum_of_means_ms"] == pytest.approx(told["mean_latency_ms"], rel=0.02)
    for batch in told["batches"]:
        assert sum(part["ms"] for part in batch["parts"]) == pytest.approx(batch["latency_ms"])
        assert batch["images"] == plan.batch_size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--feed", "--client", "x"], "choose one"),
        (["--window", "3"], "only with --feed"),
        (["--picture", "p.png"], ".svg"),
        (["--batches", "0"], None),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_listened_to(
    run: Run, arguments: list[str], words: str | None
) -> None:
    done = run("trace", *arguments)
    assert done.code == ExitCode.SETTINGS
    if words is not None:
        one_line(done, ExitCode.SETTINGS, words)


def test_without_a_plan_it_says_so(run: Run, at: list[str]) -> None:
    one_line(run("trace", *at, "--timeout", 0.5), ExitCode.PLAN_OR_SHARD, "shardline publish PLAN")


def test_if_nobody_feeds_it_says_so_and_what_to_do(run: Run, plan: Plan, at: list[str]) -> None:
    done = run("trace", *at, "--timeout", 6)
    one_line(done, ExitCode.DELIVERY, "nothing feeds the pipeline", "--feed", "shardline infer")


def test_a_client_that_does_not_trace_and_one_that_is_not_there_are_told_apart(
    run: Run, plan: Plan, feed: Feed, at: list[str], unique: str
) -> None:
    feed(f"client-{unique}", traces=False)
    done = run("trace", *at, "--timeout", 5)
    one_line(done, ExitCode.DELIVERY, f"client-{unique} feeds", "--no-traces", "deploy render")
    done = run("trace", *at, "--timeout", 5, "--client", "nobody")
    one_line(done, ExitCode.DELIVERY, "client 'nobody' does not feed", f"client-{unique} does")


@pytest.mark.parametrize("option", ["--perfetto", "--picture"])
def test_a_file_that_cannot_be_written_is_one_sentence(
    run: Run, plan: Plan, feed: Feed, at: list[str], unique: str, option: str
) -> None:
    feed(f"client-{unique}")
    done = run("trace", *at, "--batches", 1, option, "nowhere/x.svg")
    one_line(done, ExitCode.SETTINGS, "nowhere/x.svg", "a folder that exists")


# The picture


def picture(count: int = 8, model: str = "tiny") -> ElementTree.Element:
    return ElementTree.fromstring(draw_gantt(decompose(stream(count), offsets()).batches, model))


def of_class(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [e for e in root.iter(f"{SVG}rect") if kind in (e.get("class") or "").split()]


def test_the_picture_has_a_bar_for_each_batch_on_each_device() -> None:
    root = picture()
    assert len(of_class(root, "compute")) == 8 * len(DEVICES)
    colours = {(e.get("class") or "").split()[1] for e in of_class(root, "compute")}
    assert colours == {f"c{n}" for n in range(8)}
    texts = [e.text for e in root.iter(f"{SVG}text")]
    for device in DEVICES:
        assert device in texts


def test_bubbles_are_what_lies_between_two_batches_of_a_device() -> None:
    batches = decompose(stream(8), offsets()).batches
    shares = [row.bubble_share() for row in rows_of(batches)]
    whole = [7 * 9000 + LENGTHS[3], 8 * 9000, 7 * 9000 + LENGTHS[11]]
    idle = [7 * (9000 - LENGTHS[3]), 0, 7 * (9000 - LENGTHS[11])]
    assert shares == [pytest.approx(i / w) for i, w in zip(idle, whole, strict=True)]
    drawn = [e for e in of_class(picture(), "bubble") if e.get("fill")]
    assert len(drawn) == 2 * 7 + 1  # and one in the legend
    assert [row.bubble_share() for row in rows_of(batches[:1])] == [None] * 3


def test_bars_are_where_their_times_are() -> None:
    root = picture(1)
    x, width = (
        [float(e.get(name) or 0) for e in of_class(root, "compute")] for name in ("x", "width")
    )
    assert x == sorted(x)
    per_us = width[0] / LENGTHS[3]
    assert width == pytest.approx([LENGTHS[i] * per_us for i in (3, 7, 11)], rel=0.01)
    assert x[1] - x[0] == pytest.approx(sum(LENGTHS[3:7]) * per_us, rel=0.01)


def test_nothing_of_a_message_becomes_markup_of_the_picture() -> None:
    traces = [trace.model_copy(update={"route": (EVIL, "b", "c")}) for trace in stream(2)]
    text = draw_gantt(decompose(traces, []).batches, EVIL)
    root = ElementTree.fromstring(text)
    assert [e.tag for e in root.iter() if "script" in str(e.tag)] == []
    assert "\x1b" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_picture_of_its_own_carries_its_style() -> None:
    drawing = Drawing("d", "t", "words", 10)
    drawing.style("rect { fill: red }")
    root = ElementTree.fromstring(drawing.finish(10))
    assert [e.tag.removeprefix(SVG) for e in root] == ["title", "desc", "style"]
