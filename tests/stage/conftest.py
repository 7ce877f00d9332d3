"""Fixtures of the tests of one device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stage.loader
from broker.memory import MemoryBroker
from tests.conftest import StartStage
from tests.stage.yard import Yard


@pytest.fixture
def yard(tmp_path: Path, cluster: str, start_stage: StartStage) -> Iterator[Yard]:
    yard = Yard(tmp_path, cluster, start_stage, MemoryBroker())
    yield yard
    yard.observer.close()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the shards that an engine was made for."""
    made: list[Path] = []
    original = stage.loader.load_engine

    def counted(name: str, shard: Any, *more: Any) -> Any:
        made.append(shard.folder)
        return original(name, shard, *more)

    monkeypatch.setattr(stage.loader, "load_engine", counted)
    return made
