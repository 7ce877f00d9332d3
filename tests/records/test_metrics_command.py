"""`shardline metrics` against a real Mosquitto: what it prints, records and serves, how it ends."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from client.batch import BatchResult
from client.pipeline import Pipeline
from client.records.profile_file import ProfileDocument
from client.records.recorder import Recorder
from client.settings import ClientSettings
from client.watch.observer import Observer
from contract import topics
from contract.errors import ExitCode
from contract.plan import Plan
from contract.trace import BatchTrace
from tests.conftest import Run, StartStage, eventually
from tests.pipeline.fakes import make_batches, publish_plan
from tests.records.told import (
    Teller,
    as_json,
    batch_trace,
    device_metrics,
    pipeline_metrics,
    status,
    trace_metrics,
)
from tests.tiny import make_tiny_plan

ROOT = Path(__file__).parents[2]
FILES = {"batches.csv", "devices.csv", "stages.csv", "pipeline.csv"}

Rows = list[dict[str, str]]


def rows_of(file: Path) -> Rows:
    """Every row whole: as many cells as there are columns."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened, strict=True))
    assert all(None not in row and None not in row.values() for row in rows), file
    return rows


class Recording:
    """The command in a process of its own, listening."""

    def __init__(self, broker: EmbeddedBroker, cluster: str, *arguments: object) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SHARDLINE_")}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "shardline", "metrics", "--cluster", cluster),
                *("--broker", str(broker.address), *map(str, arguments)),
            ],
            env={**clean, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("recording to"):
                break
        assert self.said, "it ended before it began"
        time.sleep(1)  # its subscriptions are on their way, and nothing tells when they are there

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Its exit code and what it printed."""
        self.process.send_signal(number)
        told, _ = self.process.communicate(timeout=30)
        return self.process.returncode, told


@pytest.fixture
def record(shared_broker: EmbeddedBroker, cluster: str) -> Iterator[Callable[..., Recording]]:
    running: list[Recording] = []

    def start(*arguments: object) -> Recording:
        running.append(Recording(shared_broker, cluster, *arguments))
        return running[-1]

    yield start
    for recording in running:
        if recording.process.poll() is None:
            recording.process.kill()
        recording.process.communicate(timeout=30)


@pytest.fixture
def teller(connect: Connect, cluster: str) -> Iterator[Teller]:
    teller = Teller(connect, cluster)
    yield teller
    teller.close()


@pytest.fixture
def plan(tmp_path: Path, cluster: str) -> Plan:
    return make_tiny_plan(tmp_path, cluster=cluster)


def tell_all(teller: Teller, plan: Plan) -> None:
    """Three seconds of a pipeline: five batches, metrics of two devices."""
    plan_id = plan.plan_id
    for second in range(3):
        for device in ("pi-0", "pi-1"):
            totals = {"batches_total": 100 + second * 10, "images_total": 800 + second * 80}
            teller.tell(device_metrics(device, uptime_s=10.0 + second, plan_id=plan_id, **totals))
        teller.tell(pipeline_metrics(plan_id=plan_id, images_per_s=100.0 + second))
    teller.tell(trace_metrics(*map(batch_trace, range(2)), plan_id=plan_id))
    teller.tell(trace_metrics(*map(batch_trace, range(2, 5)), plan_id=plan_id, omitted=7))


def test_what_was_published_is_recorded_and_served(
    record: Callable[..., Recording], teller: Teller, plan: Plan, tmp_path: Path
) -> None:
    teller.tell(plan, status("pi-0"), status("pi-1"))
    folder, profile = tmp_path / "records" / "run", tmp_path / "profile.json"
    recording = record("--csv", folder, "--profile", profile, "--prometheus", "0")
    tell_all(teller, plan)
    [address] = re.findall(r"http://127\.0\.0\.1:\d+/metrics", "".join(recording.said))

    def scraped() -> str:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return str(answer.read().decode())

    eventually(lambda: 'shardline_device_images_total{cluster="' in scraped(), "a device is told")
    eventually(lambda: len(rows_of(folder / "batches.csv")) == 5, "rows are flushed")
    code, told = recording.end(signal.SIGTERM)
    assert code == 0
    assert "5 batches, 3 rows of the pipeline, 2 devices, 1 plans" in told

    assert {file.name for file in folder.iterdir()} == FILES
    batches = rows_of(folder / "batches.csv")
    assert [int(row["seq"]) for row in batches] == list(range(5))
    for row, batch in zip(batches, map(batch_trace, range(5)), strict=True):
        assert float(row["latency_ms"]) == (batch.received_us - batch.queued_us) / 1000
        assert row["plan_id"] == plan.plan_id
    pipeline = rows_of(folder / "pipeline.csv")
    assert [float(row["images_per_s"]) for row in pipeline] == [100.0, 101.0, 102.0]
    assert [row["submitted"] for row in pipeline] == ["20"] * 3
    devices = rows_of(folder / "devices.csv")
    assert [(row["device"], row["batches"], row["images"]) for row in devices] == [
        ("pi-0", "20", "160"),
        ("pi-1", "20", "160"),
    ]
    stages = rows_of(folder / "stages.csv")
    assert [row["batches"] for row in stages] == ["5"] * plan.num_stages
    [written] = ProfileDocument.model_validate_json(profile.read_bytes()).plans
    assert written.plan_id == plan.plan_id
    assert written.prediction == plan.prediction
    assert [stage.batches for stage in written.stages] == [5] * plan.num_stages


def test_a_killed_recording_leaves_whole_rows_and_is_gone_on_with(
    record: Callable[..., Recording], teller: Teller, plan: Plan, tmp_path: Path, run: Run
) -> None:
    teller.tell(plan, status("pi-0"))
    folder = tmp_path / "records"
    recording = record("--csv", folder)
    tell_all(teller, plan)
    eventually(lambda: len(rows_of(folder / "batches.csv")) == 5, "rows are flushed")
    eventually(lambda: len(rows_of(folder / "pipeline.csv")) == 3, "and those after them")
    code, _ = recording.end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    before = {name: rows_of(folder / name) for name in FILES}
    assert len(before["pipeline.csv"]) == 3

    with (folder / "batches.csv").open("a") as file:
        file.write("client-a,0123")  # as a kernel that was killed, too, may leave it
    recording = record("--csv", folder, "--append", "--json")
    tell_all(teller, plan)
    eventually(lambda: len(rows_of(folder / "batches.csv")) == 10, "rows are flushed")
    code, told = recording.end(signal.SIGINT)
    assert code == 0
    assert json.loads(told)["batches"] == 5
    after = {name: rows_of(folder / name) for name in FILES}
    for name in FILES:
        assert after[name][: len(before[name])] == before[name], name
    # Summaries come every ten seconds and at the end, which the killed one did not live to see.
    assert (before["devices.csv"], len(after["devices.csv"])) == ([], 2)
    assert (before["stages.csv"], len(after["stages.csv"])) == ([], plan.num_stages)


def trace_of(result: BatchResult) -> BatchTrace:
    """What its client could tell of a batch."""
    received_us = result.hops[-1].sent_us + 1_000
    queued_us = received_us - round(result.latency_ms * 1000)
    return BatchTrace(
        epoch=f"{result.batch_id.epoch:016x}",
        seq=result.batch_id.seq,
        attempt=result.attempt,
        images=result.batch.images,
        queued_us=queued_us,
        sent_us=queued_us,
        received_us=received_us,
        route=result.route,
        hops=result.hops,
    )


def test_a_running_pipeline_is_recorded(
    connect: Connect,
    cluster: str,
    unique: str,
    tmp_path: Path,
    start_stage: StartStage,
    teller: Teller,
) -> None:
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    for device in devices:
        start_stage(device, tmp_path)
    publish_plan(connect, plan, cluster)
    folder = tmp_path / "records"
    batches = make_batches(200)
    with (
        Recorder(cluster, folder=folder, profile=None, append=False) as recorder,
        Observer(connect, cluster, f"observer-{unique}", on_heard=recorder.hear) as observer,
        Pipeline(ClientSettings(name=f"client-{unique}", cluster=cluster), connect) as pipeline,
    ):
        recorder.open()
        pipeline.open()
        eventually(lambda: len(observer.view().devices) == 3, "the devices are seen")
        eventually(
            lambda: all(device.metrics for device in observer.view().devices), "they tell metrics"
        )
        results = [r for r in pipeline.run(batches) if isinstance(r, BatchResult)]
        for first in range(0, len(results), 50):
            traces = map(trace_of, results[first : first + 50])
            teller.tell(trace_metrics(*traces, client=f"told-{unique}", plan_id=plan.plan_id))
        done = sum(len(result.batch.names) for result in results)

        def is_told() -> bool:
            recorder.work(0.01)
            view = observer.view()
            rows = sum(f"told-{unique}" == r["client"] for r in rows_of(folder / "batches.csv"))
            devices_did = (d.metrics and d.metrics.images_total == done for d in view.devices)
            return rows == len(results) and all(devices_did)

        eventually(is_told, "devices have told of all batches")
        recorded = recorder.finish()
    assert (recorded.devices, recorded.plans, recorded.unrecorded) == (3, 1, 0)
    assert recorded.batches >= len(results)  # and those that the client itself tells of
    rows = [row for row in rows_of(folder / "batches.csv") if row["client"] == f"told-{unique}"]
    assert [int(row["seq"]) for row in rows] == [r.batch_id.seq for r in results]
    for row, result in zip(rows, results, strict=True):
        assert row["route"].split(";") == list(devices)
        assert float(row["latency_ms"]) == pytest.approx(result.latency_ms, abs=0.001)
    assert sum(int(r["images"]) for r in rows) == done


def answers(teller: Teller, plan: Plan, stop: threading.Event) -> None:
    while not stop.wait(0.1):
        teller.tell(device_metrics("pi-0"), device_metrics("pi-1", stage_index=1))
        teller.tell(pipeline_metrics(plan_id=plan.plan_id))


@pytest.fixture
def told_all_the_time(teller: Teller, plan: Plan) -> Iterator[None]:
    teller.tell(plan, status("pi-0"), status("pi-1"))
    stop = threading.Event()
    thread = threading.Thread(target=answers, args=(teller, plan, stop))
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def reach(shared_broker: EmbeddedBroker, cluster: str) -> list[str]:
    return ["--broker", str(shared_broker.address), "--cluster", cluster]


def test_one_line_a_second_says_what_the_pipeline_does(
    run: Run, reach: list[str], told_all_the_time: None
) -> None:
    began_s = time.monotonic()
    done = run("metrics", *reach, "--seconds", 2.6)
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert 1 <= len(lines) <= time.monotonic() - began_s
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  client-a 100 images/s  p50 30\.0 ms  p95 50\.0 ms  5 in flight  0 lost"
        r"  \|  pi-0 stage 0 40 %  pi-1 stage 1 40 %",
        lines[-1],
    )


def test_json_is_every_message_with_its_topic(
    run: Run, reach: list[str], cluster: str, told_all_the_time: None
) -> None:
    done = run("metrics", *reach, "--json", "--seconds", 1.5)
    assert done.code == 0, done
    heard = {line["topic"]: line["message"] for line in map(json.loads, done.out.splitlines())}
    assert heard.keys() == {
        topics.metrics_topic(cluster, "pi-0"),
        topics.metrics_topic(cluster, "pi-1"),
        topics.pipeline_metrics_topic(cluster, "client-a"),
    }
    expected = json.loads(as_json(device_metrics("pi-0")))
    assert heard[topics.metrics_topic(cluster, "pi-0")] == expected


def test_a_cluster_where_nothing_happens_is_told_so(run: Run, reach: list[str]) -> None:
    done = run("metrics", *reach, "--seconds", 1.5)
    assert done.out.splitlines()[-1].endswith("nobody feeds the pipeline  |  no device is seen")


def test_a_message_cannot_write_on_the_terminal(
    run: Run, reach: list[str], teller: Teller, cluster: str
) -> None:
    stop = threading.Event()
    plain = as_json(device_metrics("pi-0", shard="SHARD"))
    metrics = plain.replace(b"SHARD", "\u202ereversed\u2028line".encode())

    def tell() -> None:
        while not stop.wait(0.05):
            teller.publish(topics.metrics_topic(cluster, "pi-0"), metrics)

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        out = run("metrics", *reach, "--json", "--seconds", 1).out
    finally:
        stop.set()
        thread.join()
    assert "reversed" in out
    assert out.isascii()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--append"], ["--append", "--csv"]),
        (["--json", "--prometheus", "0"], ["--json", "--prometheus"]),
        (["--json", "--home-assistant"], ["--json", "--home-assistant"]),
        (["--home-assistant", "--csv", "x"], ["--home-assistant", "side by side"]),
        (["--home-assistant-remove", "--prometheus", "0"], ["--home-assistant"]),
        (["--home-assistant", "--home-assistant-remove"], ["choose one"]),
        (["--prometheus", "host"], ["expected PORT or HOST:PORT"]),
        (["--cluster", "a/b"], ["cluster name"]),
        (["--csv", "file/below"], ["cannot make this folder"]),
        (["--csv", "full"], ["full/devices.csv", "--append"]),
        (["--profile", "full/devices.csv"], ["full/devices.csv", "--append"]),
        (["--profile", "full/devices.csv", "--append"], ["not a file that"]),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, shared_broker: EmbeddedBroker, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "devices.csv").write_text("somebody's\n")
    done = run("metrics", "--broker", shared_broker.address, *arguments)
    assert done.code == ExitCode.SETTINGS, done
    [line] = [line for line in done.err.splitlines() if "Error: " in line]
    assert all(word in line for word in words), line
    assert (tmp_path / "full" / "devices.csv").read_text() == "somebody's\n"
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["devices.csv"]


def test_without_a_broker_no_file_is_begun(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Observer.__init__.__kwdefaults__, "connect_timeout_s", 0.3)
    done = run("metrics", "--broker", "127.0.0.1:1", "--csv", tmp_path / "records")
    assert done.code == ExitCode.BROKER
    assert not (tmp_path / "records").exists()


def test_a_missing_library_is_named_with_what_to_install(
    run: Run, reach: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("exposition", "prometheus"):
        monkeypatch.delitem(sys.modules, f"client.records.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    done = run("metrics", *reach, "--prometheus", "0")
    assert done.code == ExitCode.ENVIRONMENT
    assert "pip install 'shardline[watch]'" in done.err
    assert "Traceback" not in done.err


def test_home_assistant_is_told_and_untold(
    run: Run, reach: list[str], teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.home_assistant.announcer.SETTLE_S", 0.8)
    teller.tell(status("pi-0"))
    done = run("metrics", *reach, "--home-assistant", "--seconds", 2.5)
    assert (done.code, done.out) == (0, "announced: pipeline, pi-0\n"), done
    done = run("metrics", *reach, "--home-assistant-remove")
    assert (done.code, done.out) == (0, "removed: pi-0, pipeline\n"), done
    done = run("metrics", *reach, "--home-assistant-remove")
    assert (done.code, done.out) == (0, "removed: pipeline\n"), done


def test_a_recording_ends_in_order_while_messages_keep_coming(
    record: Callable[..., Recording],
    teller: Teller,
    plan: Plan,
    tmp_path: Path,
    told_all_the_time: None,
) -> None:
    recording = record("--csv", tmp_path / "records")
    time.sleep(0.3)
    code, told = recording.end(signal.SIGINT)
    assert code == 0
    assert told.startswith("recorded ")
