"""Three stages of a decoder in threads, over a real Mosquitto, and a client that a test writes."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import (
    Callbacks,
    Connect,
    ConnectionSettings,
    Delivery,
    PublishOutcome,
)
from contract import topics
from contract.activation import BatchId, Header, decode, encode
from contract.decoder import FINISHED, IDS, SAMPLING, Sampling, Step, encode_sampling
from contract.metrics import DeviceMetrics
from contract.nack import Nack, NackReason, parse_nack
from contract.plan import EdgeBroker, Plan, place
from contract.status import ShardState, parse_status
from stage.agent import StageAgent, StageSettings
from tests.conftest import StartStage, eventually
from tests.hand_decoder import hand_greedy, make_hand_plan, prompts
from tests.pipeline.fakes import publish_plan
from tests.stage.decoder_ring import expected_text
from tests.stage.harness import Listener

EPOCH = 77


@dataclass
class Token:
    attempt: int
    position: int
    ids: np.ndarray
    finished: np.ndarray


class Prompter:
    """Sends prompts in chunks, and hands on what comes back."""

    def __init__(
        self,
        connect: Connect,
        plan: Plan,
        name: str,
        cluster: str,
        results: Connect | None = None,
    ) -> None:
        """``results``: the broker of the results' edge, if they have one of their own."""
        self._plan, self._name, self._cluster = plan, name, cluster
        self.route = tuple(place.replicas[0].device for place in plan.placement)
        self.heard: queue.SimpleQueue[Token | Nack] = queue.SimpleQueue()
        settings, callbacks = ConnectionSettings(name=name), Callbacks(on_delivery=self._hear)
        self.connection = connect(settings, callbacks)
        self.connection.subscribe(topics.nack_filter(cluster, name))
        self._listening = self.connection if results is None else results(settings, callbacks)
        self._listening.subscribe(topics.result_filter(cluster, name))
        nothing = topics.result_topic(cluster, name, name)
        eventually(
            lambda: self._listening.publish(nothing, b"").result(10) is PublishOutcome.ACCEPTED,
            "the broker knows that we listen",
        )

    def close(self) -> None:
        for connection in {self.connection, self._listening}:
            connection.close(forget_session=True)

    def _hear(self, delivery: Delivery) -> None:
        if not delivery.payload:
            pass
        elif topics.parse_topic(delivery.topic).kind == "nack":
            self.heard.put(parse_nack(delivery.payload))
        else:
            header, tensors = decode(delivery.payload)
            position = Step.of(dict(header.scalars)).position
            self.heard.put(Token(header.attempt, position, tensors[IDS], tensors[FINISHED]))
        delivery.ack()

    def send(
        self, ids: np.ndarray, step: Step, sampling: tuple[Sampling, ...], attempt: int = 0
    ) -> None:
        header = Header(
            plan_id=self._plan.plan_id,
            batch_id=BatchId(EPOCH, 0),
            attempt=attempt,
            low=0,
            stage_index=0,
            route=self.route,
            client=self._name,
            sent_us=1,
            scalars=step.scalars(),
        )
        topic = topics.input_topic(self._cluster, self.route[0], self._plan.plan_id, 0, self._name)
        payload = encode(header, {IDS: ids, SAMPLING: encode_sampling(sampling)})
        self.connection.publish(topic, payload).result(timeout=10)

    def prompt(self, ids: np.ndarray, sampling: tuple[Sampling, ...], attempt: int = 0) -> None:
        assert self._plan.decoding is not None
        most, length = self._plan.decoding.chunk_tokens, ids.shape[1]
        for start in range(0, length, most):
            step = Step(start, wants=start + most >= length)
            self.send(ids[:, start : start + most], step, sampling, attempt)

    def tokens(self, attempt: int = 0) -> Iterator[Token | Nack]:
        """Until all rows have ended, or a stage refuses; what concerns other attempts is let go."""
        while True:
            heard = self.heard.get(timeout=20)
            if heard.attempt != attempt:
                continue
            yield heard
            if isinstance(heard, Nack) or heard.finished.all():
                return


@dataclass
class Site:
    plan: Plan
    folder: Path
    devices: tuple[str, ...]
    agents: dict[str, StageAgent]
    observer: Listener
    prompter: Prompter
    start_stage: StartStage

    def metrics(self) -> list[DeviceMetrics]:
        return self.observer.payloads("metrics", DeviceMetrics.model_validate_json)


@pytest.fixture
def site(
    tmp_path: Path, connect: Connect, cluster: str, unique: str, start_stage: StartStage
) -> Iterator[Site]:
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_hand_plan(tmp_path, devices=devices, cluster=cluster, end_tokens=())
    observer = Listener(
        connect,
        f"observer-{unique}",
        topics.status_filter(cluster),
        topics.metrics_filter(cluster),
    )
    agents = {device: start_stage(device, tmp_path) for device in devices}
    publish_plan(connect, plan, cluster)
    prompter = Prompter(connect, plan, f"client-{unique}", cluster)
    site = Site(plan, tmp_path, devices, agents, observer, prompter, start_stage)
    eventually(lambda: _ready(observer) >= set(devices), "all stages are ready")
    yield site
    prompter.close()
    observer.close()


def _ready(observer: Listener) -> set[str]:
    last = {status.device: status for status in observer.payloads("status", parse_status)}
    return {device for device, status in last.items() if status.shard is ShardState.READY}


def test_prompts_become_texts_and_the_metrics_say_how_fast(site: Site) -> None:
    prompt, sampling = prompts(2, 12), (Sampling(max_position=40),) * 2
    site.prompter.prompt(prompt, sampling)
    told = list(site.prompter.tokens())
    assert all(isinstance(token, Token) for token in told)
    text = np.concatenate([token.ids for token in told], axis=1)
    np.testing.assert_array_equal(text, hand_greedy(prompt, 28))
    assert [token.position for token in told] == list(range(12, 40))
    eventually(lambda: any(m.tokens_per_s for m in site.metrics()), "tokens are counted")
    last = [m for m in site.metrics() if m.tokens_per_s][-1]
    assert last.cache_sequences == 2
    cache = site.plan.stages[0].cache
    assert cache is not None
    assert last.cache_bytes in {
        2 * 48 * stage.cache.bytes_per_token for stage in site.plan.stages if stage.cache
    }
    assert last.cache_evictions_total == 0
    assert last.nacks_total == last.rejected_total == 0


def test_a_stage_that_starts_again_has_lost_the_cache_and_a_new_attempt_goes_on(
    site: Site,
) -> None:
    prompt, sampling = prompts(1, 7), (Sampling(2.0, top_p=0.9, seed=11, max_position=40),)
    stopped = threading.Event()
    text: list[int] = []
    site.prompter.prompt(prompt, sampling)
    refusal: Nack | None = None
    for heard in site.prompter.tokens():
        if isinstance(heard, Nack):
            refusal = heard
            break
        text.append(int(heard.ids[0, 0]))
        if len(text) == 5:
            site.agents[site.devices[1]].stop()
            stopped.set()
            break
    assert stopped.is_set()
    site.start_stage(site.devices[1], site.folder)
    while refusal is None:  # its session kept the next hidden state, for which it has no cache
        heard = site.prompter.heard.get(timeout=20)
        if isinstance(heard, Nack):
            refusal = heard
        else:
            text.append(int(heard.ids[0, 0]))
    assert refusal.reason in (NackReason.CACHE_LOST, NackReason.NOT_READY)
    assert refusal.device == site.devices[1]
    eventually(lambda: len(_boots(site)) == 2, "it has started again")
    eventually(lambda: site.devices[1] in _ready(site.observer), "it is ready again")
    so_far = np.concatenate([prompt, np.array([text], np.int64)], axis=1)
    site.prompter.prompt(so_far, sampling, attempt=1)
    # What the stage had not acknowledged came to it again, too: it may refuse attempt 0 twice.
    for heard in site.prompter.tokens(attempt=1):
        assert isinstance(heard, Token)
        text.append(int(heard.ids[0, 0]))
    assert [text] == expected_text(prompt, sampling, ())


def _boots(site: Site) -> set[int]:
    statuses = site.observer.payloads("status", parse_status)
    return {status.boot for status in statuses if status.device == site.devices[1]}


def test_tokens_come_back_by_the_broker_of_the_results_edge(
    tmp_path: Path, shared: dict[str, EmbeddedBroker], cluster: str, unique: str
) -> None:
    main = Connector(shared["main"].address)
    devices = tuple(f"pi-{i}-{unique}" for i in range(3))
    plan = make_hand_plan(tmp_path, devices=devices, cluster=cluster, end_tokens=())
    edges = [
        EdgeBroker(edge=edge, address=str(shared[name].address))
        for edge, name in ((1, "b"), (3, "a"))
    ]
    plan = place(plan, [spot.replicas for spot in plan.placement], cluster, edges)
    filters = [topics.input_filter(cluster, device) for device in devices]
    watchers = {
        name: Listener(Connector(each.address), f"watcher-{name}-{unique}", *filters)
        for name, each in shared.items()
    }
    observer = Listener(main, f"observer-{unique}", topics.status_filter(cluster))
    agents = [
        StageAgent(
            StageSettings(device, tmp_path, cluster, connect_timeout_s=10),
            main,
            elsewhere=main.elsewhere,
        )
        for device in devices
    ]
    threads = [threading.Thread(target=agent.run) for agent in agents]
    for thread in threads:
        thread.start()
    try:
        publish_plan(main, plan, cluster)
        eventually(lambda: _ready(observer) >= set(devices), "all stages are ready")
        results = Connector(shared["a"].address)
        prompter = Prompter(main, plan, f"client-{unique}", cluster, results)
        prompt = prompts(1, 4)
        prompter.prompt(prompt, (Sampling(max_position=24),))
        told = list(prompter.tokens())
        text = np.concatenate([token.ids for token in told if isinstance(token, Token)], axis=1)
        np.testing.assert_array_equal(text, hand_greedy(prompt, 20))
        prompter.close()
        carried = {
            name: {
                topics.parse_topic(d.topic).stage_index
                for d in watcher.heard
                if topics.parse_topic(d.topic).plan_id == plan.plan_id
            }
            for name, watcher in watchers.items()
        }
        assert carried == {"main": {0, 2}, "b": {1}, "a": {3}}
    finally:
        for agent in agents:
            agent.stop()
        for thread in threads:
            thread.join(timeout=10)
        for listener in (observer, *watchers.values()):
            listener.close()
