"""Real stages in threads over a real Mosquitto: the text is the whole model's, whoever goes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.transport import Connect
from client.batch import Batch, BatchResult, Tokens
from client.generation.pipeline import TokenPipeline
from client.generation.request import Request, batch_of, make_request
from client.settings import ClientSettings
from contract.decoder import Sampling
from contract.plan import Plan
from stage.agent import StageAgent
from tests.conftest import StartStage
from tests.hand_decoder import Shape, hand_greedy, make_hand_plan, prompts
from tests.pipeline.fakes import place_on, publish_plan

SHAPE = Shape(context=200)
TOKENS = 120


class Fleet:
    """Three stages, the one in the middle on two devices."""

    def __init__(
        self, folder: Path, connect: Connect, cluster: str, unique: str, start: StartStage
    ) -> None:
        self.folder, self._start = folder, start
        names = ("a", "b", "b2", "c")
        self.names = [f"{name}-{unique}" for name in names]
        a, b, b2, c = self.names
        built = make_hand_plan(folder, cluster=cluster, shape=SHAPE, end_tokens=(), sequences=6)
        self.plan: Plan = place_on(built, [a, (b, b2), c], cluster)
        self.agents: dict[str, StageAgent] = {n: start(n, folder) for n in self.names}
        publish_plan(connect, self.plan, cluster)
        settings = ClientSettings(name=f"writer-{unique}", cluster=cluster, ready_timeout_s=20)
        self.pipeline = TokenPipeline(settings, connect)
        self.pipeline.open()

    def start_again(self, name: str) -> None:
        self.agents[name] = self._start(name, self.folder)

    def request(self, prompt: np.ndarray, **sampling: float) -> Request:
        return make_request(prompt.tolist(), Sampling(**sampling), TOKENS, self.plan)  # type: ignore[arg-type]


@pytest.fixture
def fleet(
    tmp_path: Path, connect: Connect, cluster: str, unique: str, start_stage: StartStage
) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, connect, cluster, unique, start_stage)
    yield fleet
    fleet.pipeline.close()


def texts(
    fleet: Fleet, batches: list[Batch], at: Callable[[Tokens], None] = lambda _event: None
) -> dict[tuple[str, ...], np.ndarray]:
    """Each batch's new tokens, (rows, tokens), by the names of its rows; each position once."""
    columns: dict[tuple[str, ...], list[tuple[int | None, ...]]] = {}
    positions: dict[tuple[str, ...], list[int]] = {}
    for event in fleet.pipeline.generate(batches):
        if isinstance(event, Tokens):
            columns.setdefault(event.batch.names, []).append(event.token_ids)
            positions.setdefault(event.batch.names, []).append(event.position)
            at(event)
        else:
            assert isinstance(event, BatchResult), event
    for found in positions.values():
        assert found == list(range(found[0], found[0] + len(found)))
    return {names: np.array(found).T for names, found in columns.items()}


def batches(
    fleet: Fleet, **sampling: float
) -> tuple[list[Batch], dict[tuple[str, ...], np.ndarray]]:
    """Two prompts of one length, and one of another."""
    pair, single = prompts(2, 17), prompts(1, 3, seed=5)
    made = [
        batch_of([fleet.request(row, **sampling) for row in pair], ("one", "two")),
        batch_of([fleet.request(row, **sampling) for row in single], ("three",)),
    ]
    return made, {("one", "two"): pair, ("three",): single}


@pytest.mark.usefixtures("patient")
def test_the_text_is_the_whole_model_s(fleet: Fleet) -> None:
    made, given = batches(fleet)
    written = texts(fleet, made)
    for names, prompt in given.items():
        np.testing.assert_array_equal(written[names], hand_greedy(prompt, TOKENS, SHAPE))
    assert fleet.pipeline.counts().retried == 0


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "top_p": 0.9, "seed": 3}])
def test_a_stage_that_goes_mid_text_leaves_no_trace_in_it(
    fleet: Fleet, sampling: dict[str, float]
) -> None:
    """One device of the middle stage stops for good; its sequences go on by the other."""
    undisturbed = texts(fleet, batches(fleet, **sampling)[0])
    stopped: list[str] = []

    def stop(event: Tokens) -> None:
        if event.position == 60 and not stopped:
            route = next(e.route for e in fleet.pipeline._ledger.open_entries())
            stopped.append(route[1])
            fleet.agents[route[1]].stop()

    written = texts(fleet, batches(fleet, **sampling)[0], stop)
    assert stopped
    for names, text in undisturbed.items():
        np.testing.assert_array_equal(written[names], text)
    counts = fleet.pipeline.counts(finished=True)
    assert counts.retried >= 1
    assert (counts.delivered, counts.dead, counts.lost) == (4, 0, 0)
    assert fleet.pipeline.near_ties == 0


def test_a_last_stage_that_starts_again_has_no_cache_and_goes_on(fleet: Fleet) -> None:
    made, given = batches(fleet)
    restarted: list[str] = []

    def restart(event: Tokens) -> None:
        if event.position == 40 and not restarted:
            restarted.append(fleet.names[-1])
            fleet.agents[fleet.names[-1]].stop()
            fleet.start_again(fleet.names[-1])

    written = texts(fleet, made, restart)
    assert restarted
    for names, prompt in given.items():
        np.testing.assert_array_equal(written[names], hand_greedy(prompt, TOKENS, SHAPE))
    assert fleet.pipeline.counts().retried >= 1
    assert fleet.pipeline.near_ties == 0
