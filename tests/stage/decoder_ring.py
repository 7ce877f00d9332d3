"""Stages of a hand-made decoder in one thread, with the broker and the client in a test's hands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from broker.transport import AckToken, Delivery, PublishOutcome
from contract import topics
from contract.activation import Activation, BatchId, Header, decode, encode
from contract.decoder import FINISHED, IDS, SAMPLING, Sampling, Step, encode_sampling
from contract.nack import Nack, parse_nack
from contract.plan import Plan
from contract.status import EventKind
from shards.reader import read_shard
from stage.counters import StageCounters
from stage.engine import load_decoder
from stage.next_tokens import Limits
from stage.runner import LoadedStage, StageRunner
from stage.sampling import choose, finish_of
from tests.hand_decoder import END_TOKEN, TINY, hand_logits, make_hand_plan
from tests.stage.harness import CLIENT, CLUSTER, EPOCH, HandConnection, Published


@dataclass
class Told:
    """One result: the tokens at ``position`` and what became of each row."""

    header: Header
    position: int
    ids: np.ndarray
    finished: np.ndarray


@dataclass
class Device:
    """One stage's runner and what it has published that nobody has delivered yet."""

    name: str
    runner: StageRunner
    connection: HandConnection
    counters: StageCounters
    taken: int = 0

    def waiting(self) -> list[Published]:
        fresh = self.connection.published[self.taken :]
        self.taken = len(self.connection.published)
        return fresh


class Ring:
    """Delivers what stages publish, in order, until nothing is left; keeps what the client gets.

    ``intercept``: given a message on its way, returns those to be delivered in its place.
    """

    def __init__(self, folder: Path, num_stages: int = 3, **plan: Any) -> None:
        self.folder = folder / plan.get("name", "hand")
        self.plan: Plan = make_hand_plan(folder, num_stages, cluster=CLUSTER, **plan)
        self.route = tuple(spot.replicas[0].device for spot in self.plan.placement)
        self.devices = {name: self.start(name, i) for i, name in enumerate(self.route)}
        self.results: list[Told] = []
        self.nacks: list[Nack] = []
        self.events: list[tuple[EventKind, str]] = []
        self.acked: list[str] = []
        self.client_is_there = True
        self.intercept: Callable[[Published], Sequence[Published]] = lambda message: [message]

    def start(self, name: str, index: int) -> Device:
        """A device as after a start: nothing in its memory but its shard."""
        connection, counters = HandConnection(), StageCounters()
        runner = StageRunner(
            name, CLUSTER, connection, counters, lambda *event: self.events.append(event), 3
        )
        runner.load(self.loaded(index))
        return Device(name, runner, connection, counters)

    def loaded(self, index: int) -> LoadedStage:
        spec = self.plan.stages[index]
        assert spec.cache is not None
        assert self.plan.decoding is not None
        shard = read_shard(self.folder / spec.folder, self.plan, index)
        engine = load_decoder("onnxruntime", shard, spec.cache, self.plan.decoding, threads=1)
        return LoadedStage(self.plan, spec, engine, self.plan.max_message_bytes())

    def restart(self, name: str) -> None:
        self._pass_on(self.devices[name])  # the broker has it already
        self.devices[name] = self.start(name, self.route.index(name))

    def header(self, step: Step, seq: int = 0, **changes: Any) -> Header:
        header = Header(
            plan_id=self.plan.plan_id,
            batch_id=BatchId(EPOCH, seq),
            attempt=0,
            low=0,
            stage_index=0,
            route=self.route,
            client=CLIENT,
            sent_us=1,
            scalars=step.scalars(),
        )
        return replace(header, **changes)

    def send(
        self,
        ids: np.ndarray,
        step: Step,
        sampling: tuple[Sampling, ...] | None = None,
        *,
        topic: str | None = None,
        to: str | None = None,
        label: str = "input",
        tensors: dict[str, np.ndarray] | None = None,
        **changes: Any,
    ) -> None:
        """One message of the client to stage 0; ``changes`` are of the header."""
        header = self.header(step, **changes)
        given = {IDS: ids, SAMPLING: encode_sampling(sampling or (Sampling(),) * len(ids))}
        to = to or header.route[0]
        topic = topic or topics.input_topic(
            CLUSTER, to, header.plan_id, header.stage_index, header.sender
        )
        self.deliver(to, topic, encode(header, given | (tensors or {})), label)

    def prompt(
        self, ids: np.ndarray, sampling: tuple[Sampling, ...] | None = None, **changes: Any
    ) -> None:
        """A whole prompt in chunks; a token is wanted after the last one."""
        assert self.plan.decoding is not None
        most, length = self.plan.decoding.chunk_tokens, ids.shape[1]
        for start in range(0, length, most):
            chunk = ids[:, start : start + most]
            self.send(chunk, Step(start, wants=start + most >= length), sampling, **changes)

    def release(self, seq: int = 0, **changes: Any) -> None:
        self.send(np.zeros((1, 1), np.int64), Step(0, release=True), seq=seq, **changes)

    def deliver(self, to: str, topic: str, payload: bytes, label: str = "input") -> None:
        token = AckToken(lambda: self.acked.append(label))
        self.devices[to].runner.process(Delivery(topic, payload, 1, False, token), received_us=1)

    def run(self, results: int | None = None) -> "Ring":
        """Until nothing is under way, or the client has so many results."""
        while results is None or len(self.results) < results:
            passed_on = [self._pass_on(device) for device in list(self.devices.values())]
            if not any(passed_on):
                break
        return self

    def _pass_on(self, device: Device) -> bool:
        fresh = device.waiting()
        for message in fresh:
            to = topics.parse_topic(message.topic)
            nobody = to.kind == "result" and not self.client_is_there
            for each in self.intercept(message):
                if to.kind == "input":
                    assert to.to is not None
                    self.deliver(to.to, each.topic, each.payload, f"{to.to}")
                elif not nobody:
                    self.hear(to.kind, each.payload)
            outcome = PublishOutcome.NO_SUBSCRIBER if nobody else PublishOutcome.ACCEPTED
            if not message.future.done():
                message.future.set_result(outcome)
        return bool(fresh)

    def hear(self, kind: str, payload: bytes) -> None:
        if kind == "nack":
            self.nacks.append(parse_nack(payload))
            return
        header, tensors = decode(payload, self.plan.max_message_bytes())
        step = Step.of(dict(header.scalars))
        self.results.append(Told(header, step.position, tensors[IDS], tensors[FINISHED]))

    def text(self, attempt: int | None = None, seq: int = 0) -> np.ndarray:
        """All tokens that the client was told, (rows, count), which must follow on each other."""
        told = [
            result
            for result in self.results
            if result.header.batch_id.seq == seq
            and (attempt is None or result.header.attempt == attempt)
        ]
        first = told[0].position
        assert [result.position for result in told] == list(range(first, first + len(told)))
        return np.concatenate([result.ids for result in told], axis=1)


def expected_text(
    prompt: np.ndarray, sampling: tuple[Sampling, ...], end_tokens: tuple[int, ...] = (END_TOKEN,)
) -> list[list[int]]:
    """Each row's tokens by the reference, to its end."""
    rows = []
    for row, how in zip(prompt, sampling, strict=True):
        tokens, new = row[None], []
        while True:
            logits = hand_logits(tokens)[0, -1].astype(np.float32)
            position = tokens.shape[1]
            token = choose(logits, tokens[0], how, position)
            new.append(token)
            tokens = np.append(tokens, [[token]], axis=1)
            if finish_of(token, position, how, *Limits(end_tokens, TINY.context)):
                break
        rows.append(new)
    return rows


def padded(rows: list[list[int]]) -> np.ndarray:
    """As the last stage tells it: ended rows repeat their last token until all have ended."""
    longest = max(map(len, rows))
    return np.array([row + [row[-1]] * (longest - len(row)) for row in rows])


def messages_of(device: Device, kind: str) -> list[Activation]:
    published = device.connection.published
    return [decode(p.payload) for p in published if topics.parse_topic(p.topic).kind == kind]
