"""A language model on devices that a test writes, over a broker in this process."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest

import client.generation.deadlines
from broker.memory import MemoryBroker
from client.batch import Batch, BatchResult, DeadBatch, Tokens
from client.generation.pipeline import TokenPipeline
from client.generation.progress import PrefillTimes
from client.generation.request import Request, batch_of, make_request
from client.settings import ClientSettings
from contract.activation import Header
from contract.decoder import Sampling, Step
from contract.plan import Plan
from tests.generation.fake_decoder import FakeStage, make_text_plan, whole_text
from tests.pipeline.fakes import publish_plan

CLUSTER = "texts"
GREEDY = Sampling()


class Site:
    """A broker, stages, and pipelines of them."""

    def __init__(self, devices: Sequence[Sequence[str]], ends: bool = False, **plan: int) -> None:
        self.ends = ends
        self.broker = MemoryBroker()
        self.plan = make_text_plan(devices, CLUSTER, **plan)  # type: ignore[arg-type]
        self.stages: dict[str, FakeStage] = {}
        publish_plan(self.broker.connect, self.plan, CLUSTER)
        for group in devices:
            for device in group:
                self.stages[device] = FakeStage(
                    self.broker.connect, CLUSTER, self.plan, device, ends
                )

    @property
    def last(self) -> FakeStage:
        return next(stage for stage in self.stages.values() if stage.is_last)

    def pipeline(self, **settings: object) -> TokenPipeline:
        made = ClientSettings(name="writer", cluster=CLUSTER, ready_timeout_s=5, **settings)  # type: ignore[arg-type]
        pipeline = TokenPipeline(made, self.broker.connect)
        pipeline.open()
        return pipeline

    def batch(self, *prompts: str, max_tokens: int = 20, **sampling: float) -> Batch:
        return batch_of(
            [request(self.plan, prompt, max_tokens, **sampling) for prompt in prompts], prompts
        )

    def close(self) -> None:
        for stage in self.stages.values():
            stage.close()


def request(plan: Plan, prompt: str, max_tokens: int = 20, **sampling: float) -> Request:
    return make_request(list(prompt.encode()), GREEDY._replace(**sampling), max_tokens, plan)


class Written:
    """What a run has yielded, with the promise checked: each token once, in order."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.ends: list[BatchResult | DeadBatch] = []
        self._positions: dict[int, int] = {}

    def take(self, event: Tokens | BatchResult | DeadBatch) -> None:
        if not isinstance(event, Tokens):
            self.ends.append(event)
            return
        batch, prompt = event.batch_id.seq, event.batch.tensors["token_ids"]
        expected = self._positions.get(batch, prompt.shape[1])
        assert event.position == expected, "a token twice, or one left out"
        self._positions[batch] = expected + 1
        for row, token in enumerate(event.token_ids):
            if token is not None:
                self.tokens.setdefault((batch, row), []).append(token)

    def is_right(self) -> None:
        assert not [end for end in self.ends if isinstance(end, DeadBatch)]
        for end in self.ends:
            prompts = end.batch.tensors["token_ids"].tolist()
            for row, prompt in enumerate(prompts):
                sampling = Sampling(*end.batch.tensors["sampling"][row].tolist())
                sampling = sampling._replace(seed=int(sampling.seed))
                expected = whole_text(prompt, sampling, self.site.ends)
                assert self.tokens[end.batch_id.seq, row] == expected


def wait_at(stage: FakeStage, gates: Mapping[int, threading.Event]) -> None:
    """Let a stage wait before these positions of batch 0's first attempt, each for its event.

    A stage that nothing holds back may be through with a text before whoever reads it has acted.
    It holds its lock meanwhile: :meth:`FakeStage.forget` would wait, too.
    """

    def hears(header: Header, step: Step) -> bool:
        is_first = (header.batch_id.seq, header.attempt) == (0, 0)
        if is_first and step.returned and step.position in gates:
            assert gates[step.position].wait(30), f"nobody let it go on at {step.position}"
        return True

    stage.hears = hears


def is_result(header: Header, _step: Step) -> bool:
    return header.stage_index == 2


def is_returned(header: Header, step: Step) -> bool:
    return header.stage_index == 0 and step.returned


def paced(_header: Header, _step: Step) -> bool:
    """Hear everything, at the pace of a slow device."""
    time.sleep(0.02)
    return True


def is_end(event: Tokens | BatchResult | DeadBatch) -> bool:
    return not isinstance(event, Tokens)


def write(site: Site, pipeline: TokenPipeline, *batches: Batch) -> Written:
    """Run batches to their ends."""
    written = Written(site)
    for event in pipeline.generate(batches):
        written.take(event)
    assert len(written.ends) == len(batches)
    return written


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token is late because the machine is busy; a test in which some are late says so."""
    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", lambda *_: 30.0)


@pytest.fixture
def site(patient: None) -> Iterator[Site]:
    """Two stages, the first on two devices."""
    site = Site([["pi-0", "pi-9"], ["pi-1"]])
    yield site
    site.close()


@pytest.fixture
def hurried(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants to wait half a minute for a message that a test knows to be lost.

    On a busy machine others are late, too: for tests that do not count attempts.
    """
    monkeypatch.setattr(PrefillTimes, "deadline_s", lambda *_: 0.4)
    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", lambda *_: 0.4)


@pytest.fixture
def silent(patient: None, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Tokens are late only while this is set: from before an attempt's last one to the next."""
    silent = threading.Event()

    def deadline_s(_p99: float | None, _late: int) -> float:
        return 0.4 if silent.is_set() else 30.0

    monkeypatch.setattr(client.generation.deadlines, "token_deadline_s", deadline_s)
    return silent
