"""Fixtures of the pipeline tests: a fleet over several brokers, and one without shards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.split
import stage.plan_follower
from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from tests.conftest import StartStage
from tests.pipeline.hand_out_fleet import Fleet
from tests.pipeline.split_site import Site


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, EmbeddedBroker]]:
    with EmbeddedBroker() as one, EmbeddedBroker() as two, EmbeddedBroker() as three:
        yield {"main": one, "a": two, "b": three}


@pytest.fixture
def site(tmp_path: Path, shared: dict[str, EmbeddedBroker]) -> Iterator[Site]:
    site = Site(tmp_path, shared)
    yield site
    site.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants to wait five seconds for a broker that a test knows to be away.

    Brokers that are there answer within this too, on a machine that runs four tests at a time.
    """
    monkeypatch.setattr(broker.split, "LINK_TIMEOUT_S", 2.5)
    monkeypatch.setattr(stage.plan_follower, "EDGE_RETRY_S", 0.2)


@pytest.fixture
def fleet(
    tmp_path: Path, cluster: str, start_stage: StartStage, connect: Connect
) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, cluster, start_stage, connect)
    yield fleet
    fleet.observer.close()
