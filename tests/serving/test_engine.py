"""The pipeline's thread behind the HTTP interface: what it says of a model that cannot be asked."""

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import client.serving.engine
from client.batch import Batch, NothingYet
from client.serving.engine import Engine
from client.serving.errors import ApiError
from client.tokenizer import TextTokenizer
from contract.errors import PlanError
from contract.plan import Plan
from tests.conftest import eventually
from tests.generation.fake_decoder import make_text_plan, make_tokenizer


class Outage:
    """A pipeline that is found, and lost whenever the test says; it takes a while to close."""

    plan = make_text_plan([["pi-0"], ["pi-1"]], "texts")

    def __init__(self) -> None:
        self.lost, self.closing, self.closed = (threading.Event() for _ in range(3))

    def __enter__(self) -> "Outage":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.closing.set()
        assert self.closed.wait(20)

    def open(self) -> Plan:
        return self.plan

    def generate(self, _batches: Iterable[Batch | NothingYet]) -> Iterator[object]:
        assert self.lost.wait(20)
        yield from ()
        raise PlanError("the plan was taken away")

    def wake(self) -> None:
        """Nothing waits."""


def test_the_same_outage_once_more_is_told_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(client.serving.engine, "REOPEN_S", 0.01)
    make_tokenizer(tmp_path)
    tokenizer = TextTokenizer(tmp_path)
    outages = [Outage() for _ in range(3)]
    waiting = iter(outages)
    engine = Engine(lambda: next(waiting), lambda _plan: tokenizer)  # type: ignore[arg-type, return-value]

    def told() -> int:
        return sum("the plan was taken away" in record.message for record in caplog.records)

    with engine:
        for number, outage in enumerate(outages[:2]):
            eventually(lambda: engine._ready is not None, "the model is found")
            outage.lost.set()
            assert outage.closing.wait(20)
            with pytest.raises(ApiError, match="looked for") as refused:
                engine.ready()  # nobody knows yet why: not what the time before was about
            assert refused.value.status == 503
            assert told() == number
            outage.closed.set()
            eventually(lambda told_before=number: told() == told_before + 1, "it is told")
        eventually(lambda: engine._ready is not None, "the model is found again")
        engine.stop()
        for event in (outages[2].lost, outages[2].closed):
            event.set()
