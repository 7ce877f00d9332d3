"""Devices measure a model: real Mosquitto, real agents, real processes that measure."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import planner.devices.measure_device
import planner.devices.profile_fleet
from broker.transport import Callbacks as BrokerCallbacks
from broker.transport import Connect, ConnectionSettings
from contract import topics
from contract.command import (
    MAX_COMMAND_BYTES,
    Examine,
    LinkProbe,
    Measure,
    Measured,
    ProbeLink,
    parse_command,
)
from contract.errors import DeliveryError, EngineError
from contract.profile import FleetProfile
from contract.status import DeviceState, DeviceStatus, EventKind
from planner.canonical import canonicalise
from planner.cost_model import REFERENCE_RELAY
from planner.devices.fleet_costs import broker_from_profile, devices_from_profile
from planner.devices.measure_device import ProfileRequest
from planner.devices.profile_blocks import Block, make_block
from planner.devices.profile_cache import ProfileCache
from planner.devices.profile_fleet import FleetProfiler
from planner.graph import SegmentedGraph, segment_graph
from planner.importers import ImportOptions, import_model
from tests.conftest import StartStage, eventually
from tests.pipeline.hand_out_fleet import DEVICES, Fleet
from tests.stage.harness import Listener


@pytest.fixture(scope="module")
def graph() -> SegmentedGraph:
    options = ImportOptions(weights="random", input_size=(32, 32))
    return segment_graph(canonicalise(import_model("tests.planner.small_models:Plain", options)))


class Ground:
    """Two devices, a cache folder, and everything that is asked of the devices."""

    def __init__(
        self, folder: Path, cluster: str, connect: Connect, start_stage: StartStage
    ) -> None:
        self.folder, self.cluster, self.connect = folder, cluster, connect
        self._start = start_stage
        self.observer = Listener(
            connect,
            f"seer-{cluster}",
            *(topics.command_filter(cluster, device) for device in ("pi-0", "pi-1")),
        )

    def start(self, device: str, **settings: object) -> None:
        folder = self.folder / device
        self._start(device, self.folder / "nothing", cache_dir=folder, **settings)

    def profile(self, graph: SegmentedGraph, **request: object) -> FleetProfile:
        settings = {"budget_s": 0.05, "probe_s": 0.3, **request}
        name, cache = f"planner-{self.cluster}", ProfileCache(self.folder / "profiles")
        with FleetProfiler(self.connect, self.cluster, name, cache) as profiler:
            return profiler.profile(graph, ProfileRequest(**settings), 10)  # type: ignore[arg-type]

    def asked(self, kind: type) -> list[object]:
        commands = self.observer.payloads("command", parse_unless_self_test)
        return [command for command in commands if isinstance(command, kind)]


def parse_unless_self_test(payload: bytes) -> object:
    """A device's message to itself at its start is no command."""
    return None if payload.startswith(b'{"kind":"self_test"') else parse_command(payload)


@pytest.fixture
def ground(
    tmp_path: Path, cluster: str, connect: Connect, start_stage: StartStage
) -> Iterator[Ground]:
    ground = Ground(tmp_path, cluster, connect, start_stage)
    yield ground
    ground.observer.close()


def test_two_devices_are_profiled_and_what_was_measured_is_not_measured_again(
    ground: Ground, graph: SegmentedGraph
) -> None:
    for device in ("pi-0", "pi-1"):
        ground.start(device)
    profile = ground.profile(graph, batch_sizes=(2, 1), devices=("pi-0", "pi-1"))
    assert [device.device for device in profile.devices] == ["pi-0", "pi-1"]
    assert (profile.digest, profile.batch_sizes) == (graph.model.info.digest, (1, 2))
    for device in profile.devices:
        assert device.engine == "onnxruntime"
        assert 20e6 < device.base_bytes < 500e6
        assert device.memory_available_bytes > 100e6
        assert device.packing_factor == 2.0
        assert not device.busy
        assert device.link_up_bytes_per_s is not None
        assert device.link_down_bytes_per_s is not None
        assert device.link_latency_ms is not None
        assert 1e6 < device.link_up_bytes_per_s < 1e11
        assert 1e6 < device.link_down_bytes_per_s < 1e11
        assert 0 < device.link_latency_ms < 500
        assert 0 < device.relay_message_ms < 100
        for timings in device.timings:
            assert len(timings.segment_ms) == graph.num_segments
            assert sum(timings.segment_ms) == pytest.approx(timings.whole_ms)
            assert timings.unpacked_ms is not None
            assert 0.001 < timings.whole_ms < 1000
    assert profile.broker_bytes_per_s is not None
    costs = devices_from_profile(profile, 2)
    own = [1.02 * ms for ms in profile.devices[0].timings[1].segment_ms]
    assert costs[0].segment_ms == pytest.approx(own), "its engine beside messages"
    assert broker_from_profile(profile).bytes_per_s > 1e6
    # two devices of one kind: one measures, both batch sizes
    assert len(ground.asked(Measure)) == 2
    assert len(ground.asked(ProbeLink)) == 4

    again = ground.profile(graph, batch_sizes=(1, 2))
    assert again.devices[0].timings == profile.devices[0].timings
    assert len(ground.asked(Measure)) == 2
    assert len(ground.asked(ProbeLink)) == 8, "links are measured every time"

    fresh = ground.profile(graph, batch_sizes=(1,), devices=("pi-1",), refresh=True)
    assert len(ground.asked(Measure)) == 3
    assert fresh.devices[0].timings[0] != profile.devices[1].timings[0]
    assert list((ground.folder / "pi-0").glob("measuring-*")) == []


def test_a_model_too_large_for_the_device_is_measured_in_blocks(
    ground: Ground, graph: SegmentedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(segment.weight_bytes for segment in graph.segments)
    monkeypatch.setattr(
        planner.devices.measure_device, "weight_limit", lambda _memory: total * 7 // 10
    )
    blocks: list[Block] = []

    def recorded(*arguments: object) -> Block:
        blocks.append(make_block(*arguments))  # type: ignore[arg-type]
        return blocks[-1]

    monkeypatch.setattr(planner.devices.measure_device, "make_block", recorded)
    ground.start("pi-0")
    profile = ground.profile(graph)
    assert len(blocks) > 1
    assert len(ground.asked(Measure)) == len(blocks)
    covered = [index for block in blocks for index in range(block.first, block.end)]
    assert covered == list(range(graph.num_segments))
    assert len(profile.devices[0].timings[0].segment_ms) == graph.num_segments
    assert profile.devices[0].timings[0].whole_ms > 0


def test_a_graph_that_cannot_be_run_is_told_clearly_and_batches_go_on(
    fleet: Fleet, graph: SegmentedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages hold shards meanwhile, and serve them before and after."""
    for device in DEVICES:
        fleet.start(device)
    fleet.publish()
    original = make_block

    def broken(*arguments: object) -> Block:
        from dataclasses import replace

        return replace(original(*arguments), graph=b"not onnx at all")  # type: ignore[arg-type]

    monkeypatch.setattr(planner.devices.measure_device, "make_block", broken)
    name, cache = f"profiler-{fleet.cluster}", ProfileCache(fleet.folder / "profiles")
    with (
        FleetProfiler(fleet.connect, fleet.cluster, name, cache) as profiler,
        pytest.raises(EngineError, match=r"device pi-0 did not measure segments 0 to 7 .*cannot"),
    ):
        profiler.profile(graph, ProfileRequest(budget_s=0.05, probe_s=0.2), 10)
    fleet.runs(3)
    monkeypatch.setattr(planner.devices.measure_device, "make_block", original)
    with FleetProfiler(fleet.connect, fleet.cluster, name, cache) as profiler:
        request = ProfileRequest(budget_s=0.05, probe_s=0.2, devices=("pi-2",))
        profile = profiler.profile(graph, request, 10)
    assert profile.devices[0].busy
    assert not cache.folder.exists(), "times of a busy device are not kept"
    fleet.runs(3)
    assert fleet.events(EventKind.MESSAGE_REJECTED) == []


class Asker:
    """A planner written by hand: what it hears of pi-0, and what it asks."""

    def __init__(self, ground: Ground, name: str) -> None:
        self.cluster, self.name = ground.cluster, name
        self.heard = Listener(ground.connect, name, topics.answer_filter(ground.cluster, name))

    def ask(self, command: Examine | Measure | ProbeLink) -> None:
        topic = topics.command_topic(self.cluster, "pi-0", self.name)
        self.heard.connection.publish(topic, command.model_dump_json().encode())

    def answers(self, kind: type) -> list[object]:
        return [c for c in self.heard.payloads("answer", parse_command) if isinstance(c, kind)]


def measure_of(block: Block, request_id: str, **change: object) -> Measure:
    from contract.plan import ShardFile

    return Measure.model_validate(
        {
            "request_id": request_id,
            "graph": ShardFile(sha256="ab" * 32, size_bytes=len(block.graph)),
            "weights_size_bytes": block.weights_size_bytes,
            "weights": block.weights,
            "inputs": block.inputs,
            "batch_size": 1,
            "budget_s": 0.1,
            "sustained_s": 0.0,
            **change,
        }
    )


def test_a_second_measurement_is_refused_while_one_runs_and_the_device_still_answers(
    ground: Ground, graph: SegmentedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contract.command import Examination, Measuring, Timings

    going, release = threading.Event(), threading.Event()

    def slow(_self: object, _measure: Measure, _asker: str) -> Timings:
        going.set()
        release.wait(20)
        raise EngineError("released by the test")

    monkeypatch.setattr("stage.measurer.Measurer._measure", slow)
    ground.start("pi-0")
    first, second = (Asker(ground, f"{who}-{ground.cluster}") for who in ("one", "two"))
    block = make_block(graph, 0, graph.num_segments)
    eventually(lambda: first.ask(measure_of(block, "a" * 16)) or going.wait(0.5), "it has begun")
    second.ask(measure_of(block, "b" * 16))
    eventually(lambda: second.answers(Measured), "a refusal")
    [refusal] = second.answers(Measured)
    assert f"measures for {first.name} already" in str(refusal)
    second.ask(Examine(request_id="c" * 16))
    eventually(lambda: second.answers(Examination), "it answers other questions meanwhile")
    first.ask(measure_of(block, "a" * 16))
    eventually(lambda: len(first.answers(Measuring)) > 1, "asked again, it says that it is at it")
    release.set()
    eventually(lambda: first.answers(Measured), "the answer")
    first.ask(measure_of(block, "a" * 16))
    eventually(lambda: len(first.answers(Measured)) == 2, "a lost answer is given again")
    first.ask(measure_of(block, "d" * 16))
    eventually(lambda: len(first.answers(Measured)) == 3, "and the next measurement begins")
    for asker in (first, second):
        asker.heard.close()


def test_a_graph_that_was_never_fetched_and_another_engine_are_told(
    ground: Ground, graph: SegmentedGraph
) -> None:
    ground.start("pi-0", engine="identity")
    asker = Asker(ground, f"one-{ground.cluster}")
    block = make_block(graph, 0, graph.num_segments)
    eventually(
        lambda: asker.ask(measure_of(block, "a" * 16)) or asker.answers(Measured), "an answer"
    )
    assert "only onnxruntime can be measured" in str(asker.answers(Measured)[0])
    asker.heard.close()
    ground.start("pi-1")
    topic = topics.command_topic(ground.cluster, "pi-1", asker.name)
    again = Listener(ground.connect, asker.name, topics.answer_filter(ground.cluster, asker.name))
    payload = measure_of(block, "b" * 16).model_dump_json().encode()
    eventually(lambda: again.connection.publish(topic, payload) and again.heard, "an answer", 20)
    eventually(lambda: "no such file" in str(again.heard), "the missing graph is told")
    again.close()


def test_strange_answers_and_a_device_that_stays_silent_end_in_a_clear_error(
    ground: Ground, graph: SegmentedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that answers garbage, too much, and to questions of others."""
    monkeypatch.setattr(planner.devices.profile_fleet, "EXAMINE_PATIENCE_S", 1.0)
    planner_name = f"planner-{ground.cluster}"
    answers: list[bytes] = []

    def strange(delivery: object) -> None:
        request = json.loads(delivery.payload)  # type: ignore[attr-defined]
        other = {"kind": "link_probe", "request_id": "0" * 16, "format_version": 1}
        own = {"kind": "measured", "request_id": request["request_id"], "format_version": 1}
        for payload in (
            b"{",
            b" " * (MAX_COMMAND_BYTES + 1),
            json.dumps(other).encode(),
            json.dumps({**own, "timings": {"whole_ms": "fast"}}).encode(),
        ):
            answers.append(payload)
            topic = topics.answer_topic(ground.cluster, planner_name, "pi-0")
            connection.publish(topic, payload)
        delivery.ack()  # type: ignore[attr-defined]

    connection = ground.connect(
        ConnectionSettings(name=f"fake-{ground.cluster}"), BrokerCallbacks(on_delivery=strange)
    )
    connection.subscribe(topics.command_filter(ground.cluster, "pi-0"))
    status = DeviceStatus(device="pi-0", state=DeviceState.ONLINE, boot=1)
    connection.publish(
        topics.status_topic(ground.cluster, "pi-0"), status.model_dump_json().encode(), retain=True
    )
    with pytest.raises(DeliveryError, match="device pi-0 has not answered for 1 s"):
        ground.profile(graph)
    assert answers
    connection.close(forget_session=True)


def test_a_device_that_is_not_there_is_named(ground: Ground, graph: SegmentedGraph) -> None:
    name = f"planner-{ground.cluster}"
    with (
        FleetProfiler(
            ground.connect, ground.cluster, name, ProfileCache(ground.folder)
        ) as profiler,
        pytest.raises(DeliveryError, match=r"pi-9 is not seen .*start `shardline stage`"),
    ):
        profiler.profile(graph, ProfileRequest(devices=("pi-9",)), 0.6)


def test_a_link_that_cannot_be_probed_leaves_its_figures_out(
    ground: Ground, graph: SegmentedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object, probe: ProbeLink) -> LinkProbe:
        raise EngineError("no probe today")

    monkeypatch.setattr("stage.link_probe.LinkProber._probe", refuse)
    monkeypatch.setattr("stage.link_probe.LinkProber._through_only", refuse)
    ground.start("pi-0")
    profile = ground.profile(graph)
    [device] = profile.devices
    assert device.link_up_bytes_per_s is None
    assert profile.broker_bytes_per_s is None
    assert devices_from_profile(profile, 1)[0].link.up_ms(1e9) == 0
    assert device.relay_message_ms == REFERENCE_RELAY.message_ms


def test_a_measurement_that_is_killed_is_told_with_its_likely_cause(
    ground: Ground, graph: SegmentedGraph
) -> None:
    """What the kernel does where memory runs out, done by the test."""
    ground.start("pi-0")
    failures: list[Exception] = []

    def profile() -> None:
        try:
            ground.profile(graph, sustained_s=60.0)
        except EngineError as error:
            failures.append(error)

    def kill_the_process() -> bool:
        for child in psutil.Process().children():
            if "stage.measure" in child.cmdline():
                child.kill()
                return True
        return False

    thread = threading.Thread(target=profile)
    thread.start()
    eventually(kill_the_process, "a process measures", 60)
    thread.join(timeout=30)
    [failure] = failures
    assert "device pi-0 did not measure segments 0 to 7" in str(failure)
    assert "was killed, most likely for want of memory" in str(failure)
    assert list((ground.folder / "pi-0").glob("measuring-*")) == []


def test_a_device_that_starts_again_before_it_answers_is_named(
    ground: Ground, graph: SegmentedGraph
) -> None:
    topic = topics.status_topic(ground.cluster, "pi-0")

    def announce(boot: int) -> None:
        status = DeviceStatus(device="pi-0", state=DeviceState.ONLINE, boot=boot)
        connection.publish(topic, status.model_dump_json().encode(), retain=True)

    connection = ground.connect(
        ConnectionSettings(name=f"fake-{ground.cluster}"),
        BrokerCallbacks(on_delivery=lambda delivery: (announce(2), delivery.ack())),  # type: ignore[arg-type, func-returns-value]
    )
    connection.subscribe(topics.command_filter(ground.cluster, "pi-0"))
    announce(1)
    with pytest.raises(DeliveryError, match="device pi-0 was started again before it answered"):
        ground.profile(graph)
    connection.close(forget_session=True)
